import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.JsonArray;
import com.google.gson.JsonDeserializationContext;
import com.google.gson.JsonDeserializer;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import com.google.gson.JsonSerializationContext;
import com.google.gson.JsonSerializer;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.lang.reflect.Type;
import java.nio.charset.StandardCharsets;
import java.util.Map;

/**
 * Reads messages, one a line, into beans by gson, and writes each again as gson would. A line that cannot be read becomes
 * one that begins with "!".
 */
public final class GsonPeer {
    private GsonPeer() {
    }

    /** A field declared as an interface: an object of one key, the name of the class. */
    private static final class ByClassName<T> implements JsonSerializer<T>, JsonDeserializer<T> {
        @Override
        public JsonElement serialize(T value, Type type, JsonSerializationContext context) {
            JsonObject wrapper = new JsonObject();
            wrapper.add(Beans.nameOf(value.getClass()), context.serialize(value, value.getClass()));
            return wrapper;
        }

        @Override
        public T deserialize(JsonElement json, Type type, JsonDeserializationContext context) {
            Map.Entry<String, JsonElement> only = json.getAsJsonObject().entrySet().iterator().next();
            return context.deserialize(only.getValue(), Beans.classOf(only.getKey()));
        }
    }

    private static Gson gson() {
        return new GsonBuilder()
            .setVersion(1.5)
            .registerTypeAdapter(Beans.DataTO.class, new ByClassName<Beans.DataTO>())
            .registerTypeAdapter(Beans.DataStoreTO.class, new ByClassName<Beans.DataStoreTO>())
            .create();
    }

    private static String again(Gson gson, String line) {
        JsonArray out = new JsonArray();
        for (JsonElement element : JsonParser.parseString(line).getAsJsonArray()) {
            Map.Entry<String, JsonElement> only = element.getAsJsonObject().entrySet().iterator().next();
            Object bean = gson.fromJson(only.getValue(), Beans.classOf(only.getKey()));
            JsonObject wrapper = new JsonObject();
            wrapper.add(only.getKey(), gson.toJsonTree(bean));
            out.add(wrapper);
        }
        return gson.toJson(out);
    }

    public static void main(String[] arguments) throws IOException {
        Gson gson = gson();
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        PrintStream out = new PrintStream(System.out, false, StandardCharsets.UTF_8);
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            try {
                out.println(again(gson, line));
            } catch (RuntimeException refused) {
                out.println("! " + refused);
            }
        }
        out.flush();
    }
}
