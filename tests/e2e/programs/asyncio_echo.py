"""An echo server by asyncio, as a user would write it. Usage: asyncio_echo.py PORT"""
import asyncio
import sys


async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def main():
    server = await asyncio.start_server(echo, None, int(sys.argv[1]))
    async with server:
        await server.serve_forever()


asyncio.run(main())
