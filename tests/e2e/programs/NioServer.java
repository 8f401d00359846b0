// Java's network classes as a server and as a client.  java NioServer.java serve SELECTOR_PORT BLOCKING_PORT ASYNC_PORT HTTP_PORT
//                                                      java NioServer.java fetch URL COUNT SHA256
// serve: echoes on a selector (one thread, many connections), on blocking sockets (a thread each), on asynchronous
// channels; com.sun.net.httpserver answers uploads with the SHA-256 of their body.
import com.sun.net.httpserver.HttpServer;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.ByteBuffer;
import java.nio.channels.AsynchronousServerSocketChannel;
import java.nio.channels.AsynchronousSocketChannel;
import java.nio.channels.CompletionHandler;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Executors;

public class NioServer {
    static void selector(int port) throws Exception {
        Selector selector = Selector.open();
        ServerSocketChannel listener = ServerSocketChannel.open();
        listener.bind(new InetSocketAddress(port), 128);
        listener.configureBlocking(false);
        listener.register(selector, SelectionKey.OP_ACCEPT);
        for (;;) {
            selector.select();
            for (SelectionKey key : selector.selectedKeys()) {
                if (key.isAcceptable()) {
                    SocketChannel peer;
                    while ((peer = listener.accept()) != null) {
                        peer.configureBlocking(false);
                        peer.register(selector, SelectionKey.OP_READ, ByteBuffer.allocateDirect(65536));
                    }
                    continue;
                }
                SocketChannel peer = (SocketChannel) key.channel();
                ByteBuffer buffer = (ByteBuffer) key.attachment();
                if (key.isReadable() && peer.read(buffer) < 0 && buffer.position() == 0) {
                    peer.close();
                    continue;
                }
                buffer.flip();
                peer.write(buffer);
                buffer.compact();
                key.interestOps((buffer.hasRemaining() ? SelectionKey.OP_READ : 0) | (buffer.position() > 0 ? SelectionKey.OP_WRITE : 0));
            }
            selector.selectedKeys().clear();
        }
    }

    static void blocking(int port) throws Exception {
        ServerSocket listener = new ServerSocket(port, 128);
        for (;;) {
            Socket peer = listener.accept();
            peer.setTcpNoDelay(true);
            peer.setSoTimeout(60000);
            new Thread(() -> {
                try (peer; InputStream in = peer.getInputStream(); OutputStream out = peer.getOutputStream()) {
                    in.transferTo(out);
                } catch (Exception error) {
                    error.printStackTrace();
                }
            }).start();
        }
    }

    static void pump(AsynchronousSocketChannel peer, ByteBuffer buffer) {
        peer.read(buffer, null, new CompletionHandler<Integer, Void>() {
            public void completed(Integer got, Void unused) {
                if (got < 0) {
                    try {
                        peer.close();
                    } catch (Exception error) {
                        error.printStackTrace();
                    }
                    return;
                }
                buffer.flip();
                peer.write(buffer, null, new CompletionHandler<Integer, Void>() {
                    public void completed(Integer sent, Void unused) {
                        if (buffer.hasRemaining()) {
                            peer.write(buffer, null, this);
                        } else {
                            buffer.clear();
                            pump(peer, buffer);
                        }
                    }
                    public void failed(Throwable error, Void unused) { error.printStackTrace(); }
                });
            }
            public void failed(Throwable error, Void unused) { error.printStackTrace(); }
        });
    }

    static void async(int port) throws Exception {
        AsynchronousServerSocketChannel listener = AsynchronousServerSocketChannel.open().bind(new InetSocketAddress(port), 128);
        listener.accept(null, new CompletionHandler<AsynchronousSocketChannel, Void>() {
            public void completed(AsynchronousSocketChannel peer, Void unused) {
                listener.accept(null, this);
                pump(peer, ByteBuffer.allocate(65536));
            }
            public void failed(Throwable error, Void unused) { error.printStackTrace(); }
        });
    }

    static void http(int port) throws Exception {
        HttpServer server = HttpServer.create(new InetSocketAddress(port), 128);
        server.setExecutor(Executors.newFixedThreadPool(8));
        server.createContext("/", exchange -> {
            try (exchange) {
                MessageDigest digest = MessageDigest.getInstance("SHA-256");
                InputStream in = exchange.getRequestBody();
                byte[] piece = new byte[65536];
                for (int got; (got = in.read(piece)) > 0;) digest.update(piece, 0, got);
                byte[] answer = HexFormat.of().formatHex(digest.digest()).getBytes();
                exchange.sendResponseHeaders(200, answer.length);
                exchange.getResponseBody().write(answer);
            } catch (java.security.GeneralSecurityException error) {
                error.printStackTrace();
            }
        });
        server.start();
    }

    static void fetch(String url, int count, String expected) throws Exception {
        HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
        List<CompletableFuture<HttpResponse<byte[]>>> answers = new ArrayList<>();
        for (int i = 0; i < count; ++i)
            answers.add(client.sendAsync(HttpRequest.newBuilder(URI.create(url)).build(), HttpResponse.BodyHandlers.ofByteArray()));
        for (CompletableFuture<HttpResponse<byte[]>> answer : answers) {
            byte[] digest = MessageDigest.getInstance("SHA-256").digest(answer.get().body());
            if (!HexFormat.of().formatHex(digest).equals(expected)) throw new Exception("wrong content");
        }
        System.out.println("same");
        System.exit(0);
    }

    interface Server {
        void run(int port) throws Exception;
    }

    static void start(Server server, String port) {
        new Thread(() -> {
            try {
                server.run(Integer.parseInt(port));
            } catch (Exception error) {
                error.printStackTrace();
                System.exit(1);
            }
        }).start();
    }

    public static void main(String[] words) throws Exception {
        if (words[0].equals("fetch")) fetch(words[1], Integer.parseInt(words[2]), words[3]);
        start(NioServer::selector, words[1]);
        start(NioServer::blocking, words[2]);
        async(Integer.parseInt(words[3]));
        http(Integer.parseInt(words[4]));
        Thread.sleep(Long.MAX_VALUE);
    }
}
