// java Upload.java URL BYTES LOGIN TRIES: uploads and prints the status of each answer.
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.Base64;

public class Upload {
	public static void main(String[] args) throws Exception {
		var client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
		for (int i = 0; i < Integer.parseInt(args[3]); i++) {
			var request = HttpRequest.newBuilder(URI.create(args[0])).POST(HttpRequest.BodyPublishers.ofByteArray(new byte[Integer.parseInt(args[1])]));
			if (!args[2].isEmpty()) {
				request.header("Authorization", "Basic " + Base64.getEncoder().encodeToString(args[2].getBytes()));
			}
			try {
				System.out.println(client.send(request.build(), HttpResponse.BodyHandlers.ofString()).statusCode());
			} catch (java.io.IOException e) {
				System.out.println(e);
			}
		}
	}
}
