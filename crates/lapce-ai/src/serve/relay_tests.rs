//! In steady state a token's way through the daemon costs no heap allocation: from the chunk of the HTTP body, through decoder,
//! pool and handler, to the frame in the client's ring.
//!
//! The real HTTP client, pool, handlers and server. All of the relaying happens on the thread of this test, since the
//! runtime is its own, so that its allocations can be counted beside those of other tests.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use lapce_ai_client::{BlockingClient, Options as ClientOptions};
use lapce_ai_proto::ai::{AIRequest, Message, StreamEvent};
use lapce_ai_server::{Options, Server};
use lapce_ai_transport::{Listener, RuntimeDir};
use tokio::sync::oneshot;

use super::handlers::{self, App};
use super::providers::Providers;
use super::spend;
use crate::config::{Config, Sources};

/// Tokens in one piece of the body.
const COMPANY: usize = 100;
const WARM_UP: usize = 50;
const MEASURED: usize = 200;
const BOUND: Duration = Duration::from_secs(60);

/// What is said, so that all of it can be checked.
fn token(number: usize) -> String {
    format!(" word{number} \"é\"\n")
}

/// A piece of the body as HTTP/1.1 sends it, with the tokens from `first` on.
fn piece(first: usize) -> String {
    let mut events = String::new();
    for number in first..first + COMPANY {
        let content = serde_json::to_string(&token(number)).unwrap();
        events += &format!(
            "data: {{\"id\":\"c\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":{content}}}}}]}}\n\n"
        );
    }
    format!("{:x}\r\n{events}\r\n", events.len())
}

/// Answers one request: the warm-up, and once it is told so the rest.
fn upstream(listener: &TcpListener, go_on: &mpsc::Receiver<()>) {
    let (mut stream, _) = listener.accept().unwrap();
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    while !request.ends_with(b"}") {
        let count = stream.read(&mut buffer).unwrap();
        assert_ne!(count, 0, "the request breaks off");
        request.extend_from_slice(&buffer[..count]);
    }
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    for number in 0..WARM_UP + MEASURED {
        if number == WARM_UP {
            go_on.recv_timeout(BOUND).unwrap();
        }
        stream
            .write_all(piece(number * COMPANY).as_bytes())
            .unwrap();
    }
    let end = "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
    write!(stream, "{:x}\r\n{end}\r\n0\r\n\r\n", end.len()).unwrap();
}

/// Reads all of the answer, tells when the warm-up is over and when all is there.
fn client(socket: &Path, warm: oneshot::Sender<()>, done: oneshot::Sender<()>) {
    let client = BlockingClient::connect(ClientOptions::new(socket)).unwrap();
    let request = AIRequest::new("office/m", vec![Message::user("Go on.")]);
    let mut warm = Some(warm);
    let mut tokens = 0;
    for event in client.chat(&request).unwrap() {
        let StreamEvent::Text { text } = event.unwrap() else {
            continue;
        };
        assert_eq!(text, token(tokens));
        tokens += 1;
        if tokens == WARM_UP * COMPANY {
            warm.take().unwrap().send(()).unwrap();
        }
    }
    assert_eq!(tokens, (WARM_UP + MEASURED) * COMPANY);
    done.send(()).unwrap();
}

#[test]
fn a_relayed_token_allocates_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (go_on, told) = mpsc::channel();
    let upstream = thread::spawn(move || upstream(&listener, &told));

    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let file = dir.path().join("config.toml");
    let text = format!(
        "[discovery]\nenvironment = false\nloopback = false\n[spend]\nkeep = false\n[providers.office]\ntype = 'openai'\nbase_url = 'http://{address}/v1'\n"
    );
    fs::write(&file, text).unwrap();
    let config = Config::load(&Sources {
        file: Some(file),
        ..Sources::default()
    })
    .unwrap();

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let providers = runtime.block_on(Providers::gather(&config, |_| None));
    let gateway = spend::gateway(&config).unwrap();
    let mut server = Server::new(Options::default());
    let handle = server.handle_ref();
    let app = Arc::new(App::new(
        config,
        None,
        providers,
        gateway,
        handle.clone(),
        runtime.handle().clone(),
        Instant::now(),
    ));
    handlers::register(&mut server, &app);
    let socket = dir.path().join(RuntimeDir::SOCKET);
    let bound = Listener::bind(&RuntimeDir::for_socket(&socket)).unwrap();
    let running = server.start(bound, runtime.handle()).unwrap();

    let (is_warm, warm) = oneshot::channel();
    let (is_done, done) = oneshot::channel();
    let editor = thread::spawn(move || client(&socket, is_warm, is_done));
    let within = |what: oneshot::Receiver<()>| async move {
        tokio::time::timeout(BOUND, what).await.unwrap().unwrap();
    };
    runtime.block_on(within(warm));
    go_on.send(()).unwrap();
    let counted = allocation_counter::measure(|| runtime.block_on(within(done)));

    editor.join().unwrap();
    upstream.join().unwrap();
    handle.shutdown(Duration::ZERO);
    running.join();
    // The HTTP client takes memory for what it reads from the socket, a few times a piece. A token that took some would
    // add as many as there are tokens.
    let tokens = (MEASURED * COMPANY) as u64;
    assert!(
        counted.count_total < tokens / 20,
        "{tokens} tokens in {MEASURED} pieces: {counted:?}"
    );
}
