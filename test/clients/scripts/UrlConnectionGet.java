import java.io.InputStream;
import java.net.Authenticator;
import java.net.HttpURLConnection;
import java.net.PasswordAuthentication;
import java.net.URI;

/** Arguments: URL, proxy user name, proxy password. */
class UrlConnectionGet {
    public static void main(String[] args) throws Exception {
        Authenticator.setDefault(new Authenticator() {
            @Override
            protected PasswordAuthentication getPasswordAuthentication() {
                return getRequestorType() == RequestorType.PROXY
                    ? new PasswordAuthentication(args[1], args[2].toCharArray()) : null;
            }
        });
        HttpURLConnection c = (HttpURLConnection) URI.create(args[0]).toURL().openConnection();
        try (InputStream in = c.getInputStream()) {
            in.transferTo(System.out);
        }
    }
}
