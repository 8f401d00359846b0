// Node's network modules as a server and as a client.  node node_server.js serve HTTP_PORT ECHO_PORT UDP_PORT [workers]
//                                                      node node_server.js fetch URL COUNT SHA256
// serve: GET / answers with 3 MB of a stream, POST with the SHA-256 of the body; an echo that pipes the socket into itself; a UDP echo.
// With `workers` the HTTP server runs in that many processes of the cluster module: the primary accepts and passes connections on.
'use strict';
const cluster = require('cluster');
const crypto = require('crypto');
const dgram = require('dgram');
const http = require('http');
const net = require('net');
const { Readable } = require('stream');

function* pieces() {
  for (let number = 0; number < 3000; ++number) yield Buffer.alloc(1000, `${number} `);
}

function serveHttp(port) {
  http.createServer((request, response) => {
    if (request.method === 'GET') {
      response.setHeader('X-Process', process.pid);
      Readable.from(pieces()).pipe(response);
      return;
    }
    const digest = crypto.createHash('sha256');
    request.on('data', (piece) => digest.update(piece));
    request.on('end', () => response.end(digest.digest('hex')));
  }).listen(port, '::');
}

function serve(httpPort, echoPort, udpPort, workers) {
  if (workers && cluster.isPrimary) {
    for (let number = 0; number < workers; ++number) cluster.fork();
  } else {
    serveHttp(httpPort);
  }
  if (!cluster.isPrimary) return;
  net.createServer({ allowHalfOpen: true }, (socket) => {
    socket.on('error', (error) => console.log(`error ${error}`));
    socket.pipe(socket);
  }).listen(echoPort, '::');
  const udp = dgram.createSocket('udp6');
  udp.on('message', (data, from) => udp.send(data, from.port, from.address));
  udp.bind(udpPort);
}

function fetch(url, count, expected) {
  const agent = new http.Agent({ keepAlive: true, maxSockets: 4 });
  let left = count;
  for (let number = 0; number < count; ++number) {
    http.get(url, { agent }, (response) => {
      const digest = crypto.createHash('sha256');
      response.on('data', (piece) => digest.update(piece));
      response.on('end', () => {
        if (digest.digest('hex') !== expected) {
          console.log('wrong content');
          process.exit(1);
        }
        if (--left === 0) {
          console.log('same');
          agent.destroy();
        }
      });
    });
  }
}

const words = process.argv.slice(2);
if (words[0] === 'serve') serve(+words[1], +words[2], +words[3], +(words[4] || 0));
else fetch(words[1], +words[2], words[3]);
