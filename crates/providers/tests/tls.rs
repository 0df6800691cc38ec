//! Whom the client trusts, and how it goes through a proxy: real TLS on loopback, with a certificate of the test's own.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::io::Write;
use std::process::Command;
use std::sync::Arc;

use lapce_ai_providers::{
    ErrorKind, HttpClient, HttpConfig, HttpProvider, Provider, ProviderError,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use support::{KEY, wire};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

const HOST: &str = "provider.example";
const LIST: &str = r#"{"object":"list","data":[{"id":"m-1","object":"model"}]}"#;

/// A provider that answers every request with a list of models, over TLS as `HOST` and 127.0.0.1.
struct Server {
    port: u16,
    root: tempfile::NamedTempFile,
}

async fn start() -> Server {
    let names = [HOST.to_owned(), "127.0.0.1".to_owned()];
    let certified = rcgen::generate_simple_self_signed(names).unwrap();
    let mut root = tempfile::NamedTempFile::new().unwrap();
    root.write_all(certified.cert.pem().as_bytes()).unwrap();
    let key = PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
    let crypto = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(crypto)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], PrivateKeyDer::from(key))
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let stream = listener.accept().await.unwrap().0;
            // A client that does not trust us goes away in its handshake.
            let Ok(mut stream) = acceptor.accept(stream).await else {
                continue;
            };
            let head = head(&mut stream).await;
            assert!(head.contains(KEY), "{head}");
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{LIST}",
                LIST.len()
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
            let _ = stream.shutdown().await;
        }
    });
    Server { port, root }
}

async fn head(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        assert_ne!(stream.read_buf(&mut bytes).await.unwrap(), 0);
    }
    String::from_utf8(bytes).unwrap()
}

/// A proxy: it answers the next request for a tunnel with `status`, and leads to `port` whatever host is asked for.
async fn proxy(status: &'static str, port: u16) -> (String, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let asked = tokio::spawn(async move {
        let mut client = listener.accept().await.unwrap().0;
        let head = head(&mut client).await;
        let answer = format!("HTTP/1.1 {status}\r\n\r\n");
        client.write_all(answer.as_bytes()).await.unwrap();
        if status.starts_with("200") {
            let mut server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            // However it ends.
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        }
        head
    });
    (address, asked)
}

async fn list(base_url: &str, config: &HttpConfig) -> Result<Vec<String>, ProviderError> {
    let client = HttpClient::new(config)?;
    let provider = HttpProvider::new("tested", wire(base_url), client);
    let models = provider.models().await?;
    Ok(models.into_iter().map(|model| model.id).collect())
}

fn config(server: &Server, proxy: Option<String>) -> HttpConfig {
    HttpConfig {
        extra_root_certs: Some(server.root.path().into()),
        system_root_certs: false,
        https_proxy: proxy.map(Into::into),
        ..HttpConfig::default()
    }
}

#[tokio::test]
async fn an_https_address_is_reached_through_the_proxy() {
    let server = start().await;
    let (address, asked) = proxy("200 Connection established", server.port).await;
    let config = config(&server, Some(format!("http://me:s3cret@{address}")));
    // Nobody knows this host but the proxy.
    let models = list(&format!("https://{HOST}/v1"), &config).await.unwrap();
    assert_eq!(models, ["m-1"]);
    let head = asked.await.unwrap();
    assert!(
        head.starts_with("CONNECT provider.example:443 HTTP/1.1\r\n"),
        "{head}"
    );
    // me:s3cret
    assert!(
        head.contains("Proxy-Authorization: Basic bWU6czNjcmV0\r\n"),
        "{head}"
    );
    assert!(
        !head.contains(KEY),
        "the proxy learns the host and nothing else"
    );
}

#[tokio::test]
async fn this_machine_is_reached_directly() {
    let server = start().await;
    let url = format!("https://127.0.0.1:{}/v1", server.port);
    // Nobody listens there.
    let dead = Some("http://127.0.0.1:1".to_owned());
    assert_eq!(
        list(&url, &config(&server, dead.clone())).await.unwrap(),
        ["m-1"]
    );
    let proxied = list(
        &format!("https://{HOST}/v1"),
        &config(&server, dead.clone()),
    )
    .await;
    let error = proxied.unwrap_err();
    assert_eq!(error.kind, ErrorKind::ConnectionFailed);
    assert!(
        error.message.contains("the proxy 127.0.0.1:1 led nowhere"),
        "{error}"
    );
}

#[tokio::test]
async fn what_the_proxy_refuses_is_told_without_its_password() {
    let server = start().await;
    for (status, part) in [
        (
            "407 Proxy Authentication Required",
            "authorization required",
        ),
        ("403 Forbidden", "unsuccessful"),
    ] {
        let (address, asked) = proxy(status, server.port).await;
        let config = config(&server, Some(format!("http://me:s3cret@{address}")));
        let error = list(&format!("https://{HOST}/v1"), &config)
            .await
            .unwrap_err();
        asked.await.unwrap();
        let text = format!("{error} {error:?} {config:?}");
        assert_eq!(error.kind, ErrorKind::ConnectionFailed);
        assert!(text.contains(&address) && text.contains(part), "{text}");
        assert!(!text.contains("s3cret") && !text.contains("bWU6"), "{text}");
    }
}

/// The environment says which certificates the system has, and a process has one: so this test runs itself.
#[tokio::test]
async fn the_system_s_certificates_are_trusted() {
    const INNER: &str = "the_system_s_certificates_are_trusted";
    if let Ok(url) = std::env::var("LAPCE_AI_TEST_URL") {
        let trusting = list(&url, &HttpConfig::default()).await.unwrap();
        assert_eq!(trusting, ["m-1"]);
        let compiled_in = HttpConfig {
            system_root_certs: false,
            ..HttpConfig::default()
        };
        let error = list(&url, &compiled_in).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::ConnectionFailed);
        assert!(error.message.contains("UnknownIssuer"), "{error}");
        return;
    }
    let server = start().await;
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args(["--exact", INNER, "--nocapture"])
        .env(
            "LAPCE_AI_TEST_URL",
            format!("https://127.0.0.1:{}/v1", server.port),
        )
        .env("SSL_CERT_FILE", server.root.path())
        .env_remove("SSL_CERT_DIR");
    // The server goes on meanwhile.
    let output = tokio::task::spawn_blocking(move || child.output().unwrap());
    let output = output.await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
