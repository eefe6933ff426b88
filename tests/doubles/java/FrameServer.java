import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.FileInputStream;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.nio.charset.StandardCharsets;
import java.security.KeyStore;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import java.util.zip.GZIPInputStream;
import java.util.zip.GZIPOutputStream;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLEngine;
import javax.net.ssl.SSLEngineResult;
import javax.net.ssl.SSLEngineResult.HandshakeStatus;

/**
 * A management server's port on a JDK's own TLS: raw handshake, then a clear-text header before every record.
 *
 * <p>java FrameServer.java KEYSTORE PASSWORD listens on 127.0.0.1, prints its port, and serves one agent after another until
 * its standard input ends. It takes every host in, asks a long question, sends back what it is asked to echo, and prints what
 * it hears.
 */
public final class FrameServer {
    private static final int MAX_FRAME = 18000;
    private static final int FOLLOWS = 0x10000;
    private static final int GZIP_FROM = 8192;
    private static final int PADDING = 300_000;
    private static final String API = "com.cloud.agent.api.";

    private final SocketChannel channel;
    private final SSLEngine engine;

    private FrameServer(SocketChannel channel, SSLEngine engine) {
        this.channel = channel;
        this.engine = engine;
    }

    public static void main(String[] arguments) throws Exception {
        KeyStore store = KeyStore.getInstance("PKCS12");
        char[] password = arguments[1].toCharArray();
        try (FileInputStream file = new FileInputStream(arguments[0])) {
            store.load(file, password);
        }
        KeyManagerFactory keys = KeyManagerFactory.getInstance(KeyManagerFactory.getDefaultAlgorithm());
        keys.init(store, password);
        SSLContext context = SSLContext.getInstance("TLSv1.2");
        context.init(keys.getKeyManagers(), null, null);
        ServerSocketChannel listener = ServerSocketChannel.open();
        listener.bind(new InetSocketAddress("127.0.0.1", 0));
        exitWithInput();
        say("port " + ((InetSocketAddress) listener.getLocalAddress()).getPort());
        while (true) {
            try (SocketChannel channel = listener.accept()) {
                SSLEngine engine = context.createSSLEngine();
                engine.setUseClientMode(false);
                engine.setWantClientAuth(true);
                FrameServer server = new FrameServer(channel, engine);
                server.handshake();
                say("handshake " + engine.getSession().getProtocol());
                server.serve();
            } catch (IOException error) {
                say("closed " + error.getMessage());
            }
        }
    }

    private static void exitWithInput() {
        Thread watch = new Thread(() -> {
            try {
                while (System.in.read() >= 0) {
                    continue;
                }
            } catch (IOException error) {
                say("input " + error.getMessage());
            }
            System.exit(0);
        });
        watch.setDaemon(true);
        watch.start();
    }

    private static void say(String line) {
        System.out.println(line);
        System.out.flush();
    }

    // ------------------------------------------------------------------------------------------------- handshake

    /** Reads whatever has arrived; what is left over at the end is lost, as at a real server. */
    private void handshake() throws IOException {
        ByteBuffer in = ByteBuffer.allocate(1 << 16);
        ByteBuffer plain = ByteBuffer.allocate(1 << 16);
        ByteBuffer out = ByteBuffer.allocate(1 << 16);
        in.flip();
        engine.beginHandshake();
        while (true) {
            HandshakeStatus status = engine.getHandshakeStatus();
            SSLEngineResult result = null;
            switch (status) {
                case NEED_UNWRAP:
                    result = engine.unwrap(in, plain);
                    if (result.getStatus() == SSLEngineResult.Status.BUFFER_UNDERFLOW) {
                        in.compact();
                        if (channel.read(in) < 0) {
                            throw new IOException("end of stream in the handshake");
                        }
                        in.flip();
                    }
                    break;
                case NEED_WRAP:
                    out.clear();
                    result = engine.wrap(ByteBuffer.allocate(0), out);
                    out.flip();
                    write(out);
                    break;
                case NEED_TASK:
                    engine.getDelegatedTask().run();
                    break;
                default:
                    return;
            }
            if (result != null && result.getHandshakeStatus() == HandshakeStatus.FINISHED) {
                return;
            }
        }
    }

    // ---------------------------------------------------------------------------------------------------- frames

    private byte[] receive() throws IOException {
        ByteArrayOutputStream message = new ByteArrayOutputStream();
        ByteBuffer plain = ByteBuffer.allocate(1 << 15);
        while (true) {
            int header = read(4).getInt();
            int length = (short) header;
            if (length < 0 || length > MAX_FRAME) {
                throw new IOException("a frame of " + length + " bytes");
            }
            ByteBuffer frame = read(length);
            while (frame.hasRemaining()) {
                plain.clear();
                SSLEngineResult result = engine.unwrap(frame, plain);
                if (result.getStatus() != SSLEngineResult.Status.OK) {
                    throw new IOException("no progress: " + result.getStatus());
                }
                message.write(plain.array(), 0, plain.position());
            }
            if ((header & FOLLOWS) == 0) {
                return message.toByteArray();
            }
        }
    }

    private void send(byte[] message) throws IOException {
        ByteBuffer plain = ByteBuffer.wrap(message);
        ByteBuffer out = ByteBuffer.allocate(engine.getSession().getPacketBufferSize() + 4);
        while (plain.hasRemaining()) {
            out.clear();
            out.position(4);
            engine.wrap(plain, out);
            int length = out.position() - 4;
            out.putInt(0, length | (plain.hasRemaining() ? FOLLOWS : 0));
            out.flip();
            write(out);
        }
    }

    private ByteBuffer read(int length) throws IOException {
        ByteBuffer buffer = ByteBuffer.allocate(length);
        while (buffer.hasRemaining()) {
            if (channel.read(buffer) < 0) {
                throw new IOException("end of stream");
            }
        }
        buffer.flip();
        return buffer;
    }

    private void write(ByteBuffer buffer) throws IOException {
        while (buffer.hasRemaining()) {
            channel.write(buffer);
        }
    }

    // -------------------------------------------------------------------------------------------------- messages

    private void serve() throws IOException {
        while (true) {
            ByteBuffer header = ByteBuffer.wrap(receive());
            int version = header.getInt() >>> 24;
            int flags = header.get(3) & 0xff;
            long sequence = header.getLong(4);
            int size = header.getInt(12);
            byte[] body = new byte[header.capacity() - 40];
            header.position(40);
            header.get(body);
            if ((flags & 0x80) != 0) {
                body = new GZIPInputStream(new ByteArrayInputStream(body)).readAllBytes();
            }
            String text = new String(body, StandardCharsets.US_ASCII);
            List<String> names = names(text);
            say((flags & 1) == 1 ? "request" : "answer", version, flags & 0x7f, sequence, size == body.length, names);
            if ((flags & 1) == 1) {
                answer(sequence, names, text);
            }
        }
    }

    private static void say(String kind, int version, int flags, long sequence, boolean sized, List<String> names) {
        say(kind + " " + version + " " + flags + " " + sequence + " " + sized + " " + String.join(",", names));
    }

    /** The class names of the elements: keys of one-key objects in the outermost array. */
    private static List<String> names(String text) {
        List<String> names = new ArrayList<>();
        int depth = 0;
        boolean quoted = false;
        for (int at = 0; at < text.length(); at++) {
            char letter = text.charAt(at);
            if (quoted) {
                if (letter == '\\') {
                    at++;
                } else if (letter == '"') {
                    quoted = false;
                }
            } else if (letter == '"') {
                quoted = true;
                if (depth == 2) {
                    names.add(text.substring(at + 1, text.indexOf('"', at + 1)));
                }
            } else if (letter == '[' || letter == '{') {
                depth++;
            } else if (letter == ']' || letter == '}') {
                depth--;
            }
        }
        return names;
    }

    private void answer(long sequence, List<String> names, String text) throws IOException {
        String name = names.get(0);
        if (name.equals("com.example.EchoCommand")) {
            message(0x20, sequence, text);
        } else if (name.startsWith(API + "Startup")) {
            message(0x20, sequence, "[{\"" + API + "StartupAnswer\":{\"result\":true,\"hostId\":0,\"pingInterval\":1}}]");
            for (int time = 0; time < 2; time++) {
                message(0x25, 7L + time, "[{\"" + API + "ReadyCommand\":{\"hostId\":7,\"dcId\":1}}]");
            }
            StringBuilder padding = new StringBuilder();
            new Random(1).ints(PADDING, 'a', 'z' + 1).forEach(letter -> padding.append((char) letter));
            message(0x23, 9L, "[{\"com.example.QuestionCommand\":{\"padding\":\"" + padding + "\"}}]");
        } else if (name.startsWith(API + "Ping")) {
            message(0x20, sequence, "[{\"" + API + "PingAnswer\":{\"result\":true,\"sendStartup\":false}}]");
        }
    }

    private void message(int flags, long sequence, String text) throws IOException {
        byte[] body = text.getBytes(StandardCharsets.US_ASCII);
        int size = body.length;
        int compressed = 0;
        if (size >= GZIP_FROM) {
            ByteArrayOutputStream zipped = new ByteArrayOutputStream();
            try (GZIPOutputStream zip = new GZIPOutputStream(zipped)) {
                zip.write(body);
            }
            body = zipped.toByteArray();
            compressed = 0x80;
        }
        ByteBuffer out = ByteBuffer.allocate(40 + body.length);
        out.putInt(flags | compressed).putLong(sequence).putInt(size).putLong(11L).putLong(7L).putLong(7L).put(body);
        out.flip();
        send(out.array());
    }
}
