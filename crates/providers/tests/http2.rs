//! HTTP/2 over TLS: certificates of one's own, cancelling one stream of a connection, and streams that the server resets.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[allow(dead_code, reason = "this test uses a part")]
#[path = "conformance/ask.rs"]
mod ask;
#[allow(dead_code, reason = "this test uses a part")]
#[path = "conformance/fixture.rs"]
mod fixture;
#[allow(dead_code, reason = "this test uses a part")]
#[path = "conformance/render.rs"]
mod render;
mod support;

use std::convert::Infallible;
use std::io::{self, Write};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use lapce_ai_providers::{
    ChatRequest, ErrorKind, Event, HttpClient, HttpConfig, HttpProvider, PROFILES, Provider,
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

/// What comes after an answer's only chunk.
enum Then {
    End,
    Nothing,
    /// A reset, when the test says so: at once, it would overtake what was written before.
    Reset(Arc<Mutex<UnboundedReceiver<()>>>),
}

/// One chunk, and what comes then.
struct Answer {
    chunk: Option<Bytes>,
    then: Then,
    _guard: Guard,
}

/// An answer whose stream is reset in its middle, whatever is asked.
#[derive(Clone)]
struct Broken {
    media_type: String,
    beginning: Bytes,
    breaks: Arc<Mutex<UnboundedReceiver<()>>>,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(chunk) = self.chunk.take() {
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        match &self.then {
            Then::End => Poll::Ready(None),
            Then::Nothing => Poll::Pending,
            Then::Reset(now) => {
                let lost = now.lock().unwrap().poll_recv(cx);
                lost.map(|_| Some(Err(io::Error::other("lost"))))
            }
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
    serve(None).await
}

async fn serve(broken: Option<Broken>) -> Server {
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
            let broken = broken.clone();
            let service = service_fn(move |request| {
                answer(request, broken.clone(), dropped.clone(), arrived.clone())
            });
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
    broken: Option<Broken>,
    dropped: UnboundedSender<&'static str>,
    arrived: UnboundedSender<()>,
) -> Result<http::Response<Answer>, Infallible> {
    use http_body_util::BodyExt;
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let _ = arrived.send(());
    if let Some(broken) = broken {
        let answer = Answer {
            chunk: Some(broken.beginning),
            then: Then::Reset(broken.breaks),
            _guard: Guard("answer", dropped),
        };
        let head = http::Response::builder().header("content-type", broken.media_type);
        return Ok(head.body(answer).unwrap());
    }
    if body["model"] == "silent" {
        let _guard = Guard("request", dropped.clone());
        std::future::pending::<()>().await;
    }
    let (chunk, then) = if body["model"] == "endless" {
        (format!("data: {}\n\n", text_chunk("a")), Then::Nothing)
    } else {
        (sse(&[&text_chunk("a"), FINISH]), Then::End)
    };
    let answer = Answer {
        chunk: Some(chunk.into()),
        then,
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

/// Every row of the table: what came is told, and that the rest did not come.
#[tokio::test]
async fn a_stream_that_is_reset_is_cut() {
    for profile in PROFILES {
        let path = format!("{}/stream", profile.name);
        let exchanges = fixture::read(&support::fixtures(), &path).unwrap();
        let exchange = &exchanges[0];
        let answer = exchange.answer.as_ref().unwrap();
        let mut options = exchange.options.clone();
        options.remove("api_version");
        let Some(ask::Ask::Chat(request)) = ask::ask(&exchange.ask, &mut options) else {
            panic!("{path}: no chat")
        };
        // Into the piece that has the first of the text.
        let body = support::body(&answer.media_type, &answer.body);
        let beginning = &body[..body.len() * 3 / 5];
        let (now, breaks) = unbounded_channel();
        let server = serve(Some(Broken {
            media_type: answer.media_type.clone(),
            beginning: Bytes::copy_from_slice(beginning),
            breaks: Arc::new(Mutex::new(breaks)),
        }))
        .await;
        let client = HttpClient::new(&HttpConfig {
            extra_root_certs: Some(server.root.path().into()),
            ..HttpConfig::default()
        })
        .unwrap();
        let provider = profile
            .connect(
                "tested",
                &support::settings(profile, &server.base_url),
                client,
            )
            .unwrap();
        let (mut got, mut text) = (render::Rendering::default(), String::new());
        let read = async {
            let mut stream = provider.chat(&request).await.unwrap();
            let mut last = None;
            while let Some(event) = stream.next().await {
                got.add(&event);
                if let Ok(Event::Text(more)) = event {
                    text.push_str(more);
                    let _ = now.send(());
                }
                last = event.err();
            }
            last
        };
        let error = tokio::time::timeout(Duration::from_secs(20), read)
            .await
            .unwrap_or_else(|_| panic!("{path}: nothing came for 20 s"))
            .unwrap_or_else(|| panic!("{path}: it ended as if it were whole"));
        assert_eq!(error.kind, ErrorKind::StreamCut, "{path}: {error}");
        assert!(error.is_retryable(), "{path}: {error}");
        assert!(!text.is_empty(), "{path}: {:?}", got.lines());
        assert_eq!(server.connections.load(Ordering::Relaxed), 1, "{path}");
    }
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
