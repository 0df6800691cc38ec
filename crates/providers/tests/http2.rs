//! HTTP/2 over TLS: certificates of one's own, and cancelling one stream of a connection.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::convert::Infallible;
use std::io::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use lapce_ai_providers::{
    ChatRequest, ErrorKind, Event, HttpClient, HttpConfig, HttpProvider, Provider,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use support::{FINISH, request, sse, text_chunk, wire};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_rustls::TlsAcceptor;

/// Says that it is dropped.
struct Guard(&'static str, UnboundedSender<&'static str>);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.1.send(self.0);
    }
}

/// One chunk, then its end or nothing more.
struct Answer {
    chunk: Option<Bytes>,
    ends: bool,
    _guard: Guard,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.chunk.take() {
            Some(chunk) => Poll::Ready(Some(Ok(Frame::data(chunk)))),
            None if self.ends => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

struct Server {
    base_url: String,
    root: tempfile::NamedTempFile,
    connections: Arc<AtomicUsize>,
    dropped: UnboundedReceiver<&'static str>,
    arrived: UnboundedReceiver<()>,
}

async fn start() -> Server {
    let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let mut root = tempfile::NamedTempFile::new().unwrap();
    root.write_all(certified.cert.pem().as_bytes()).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(
        certified.signing_key.serialize_der(),
    ));
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(
        rustls::crypto::ring::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .unwrap()
    .with_no_client_auth()
    .with_single_cert(vec![certified.cert.der().clone()], key)
    .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base_url = format!("https://{}/v1", listener.local_addr().unwrap());
    let connections = Arc::new(AtomicUsize::new(0));
    let (dropped, dropped_rx) = unbounded_channel();
    let (arrived, arrived_rx) = unbounded_channel();
    let counter = connections.clone();
    tokio::spawn(async move {
        loop {
            let stream = listener.accept().await.unwrap().0;
            // A client that does not trust us goes away in its handshake.
            let Ok(stream) = acceptor.accept(stream).await else {
                continue;
            };
            counter.fetch_add(1, Ordering::Relaxed);
            let (dropped, arrived) = (dropped.clone(), arrived.clone());
            let service =
                service_fn(move |request| answer(request, dropped.clone(), arrived.clone()));
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    Server {
        base_url,
        root,
        connections,
        dropped: dropped_rx,
        arrived: arrived_rx,
    }
}

/// Answers as the model's name says.
async fn answer(
    request: http::Request<Incoming>,
    dropped: UnboundedSender<&'static str>,
    arrived: UnboundedSender<()>,
) -> Result<http::Response<Answer>, Infallible> {
    use http_body_util::BodyExt;
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let _ = arrived.send(());
    if body["model"] == "silent" {
        let _guard = Guard("request", dropped.clone());
        std::future::pending::<()>().await;
    }
    let ends = body["model"] != "endless";
    let chunk = if ends {
        sse(&[&text_chunk("a"), FINISH])
    } else {
        format!("data: {}\n\n", text_chunk("a"))
    };
    let answer = Answer {
        chunk: Some(chunk.into()),
        ends,
        _guard: Guard("answer", dropped),
    };
    Ok(http::Response::builder()
        .header("content-type", "text/event-stream")
        .body(answer)
        .unwrap())
}

fn asking(model: &str) -> ChatRequest {
    ChatRequest {
        model: model.into(),
        ..request()
    }
}

#[tokio::test]
async fn cancelling_resets_the_stream_and_keeps_the_connection() {
    let mut server = start().await;
    let config = HttpConfig {
        extra_root_certs: Some(server.root.path().into()),
        ..HttpConfig::default()
    };
    let provider = HttpProvider::new(
        "tested",
        wire(&server.base_url),
        HttpClient::new(&config).unwrap(),
    );

    let whole = provider
        .chat(&asking("whole"))
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    assert_eq!(
        (whole.text.as_str(), server.dropped.recv().await),
        ("a", Some("answer"))
    );
    server.arrived.recv().await.unwrap();

    let mut stream = provider.chat(&asking("endless")).await.unwrap();
    while !matches!(stream.next().await.unwrap().unwrap(), Event::Text("a")) {}
    server.arrived.recv().await.unwrap();
    assert!(server.dropped.is_empty());
    drop(stream);
    assert_eq!(server.dropped.recv().await, Some("answer"));

    // Before the answer's head, too.
    tokio::select! {
        _ = async { provider.chat(&asking("silent")).await.map(drop) } => panic!("nobody answers"),
        _ = server.arrived.recv() => {}
    }
    assert_eq!(server.dropped.recv().await, Some("request"));

    let whole = provider
        .chat(&asking("whole"))
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    assert_eq!(whole.text, "a");
    assert_eq!(server.connections.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_is_refused() {
    let server = start().await;
    let provider = HttpProvider::new("tested", wire(&server.base_url), support::client());
    let error = provider.chat(&asking("whole")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::ConnectionFailed);
    assert!(error.message.contains("certificate"), "{error}");
    assert_eq!(server.connections.load(Ordering::Relaxed), 0);
}
