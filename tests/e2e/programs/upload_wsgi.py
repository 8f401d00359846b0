"""A WSGI application: GET /small says what the other servers of the tests say, POST answers with the SHA-256 of the body."""
import hashlib


def application(environment, start_response):
    if environment["REQUEST_METHOD"] == "GET":
        answer = b"culvert carries the stream under the road\n"
    else:
        digest = hashlib.sha256()
        while piece := environment["wsgi.input"].read(65536):
            digest.update(piece)
        answer = digest.hexdigest().encode()
    start_response("200 OK", [("Content-Length", str(len(answer)))])
    return [answer]
