//! A server and a bare client, frame by frame.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use lapce_ai_proto::{FIN, Features, Kind, MessageType};
use lapce_ai_server::{Options, Server};
use lapce_ai_transport::{
    ConnectOptions, Connection, Listener, RuntimeDir, TransportError, connect, flush,
};

fn options(shared_memory: bool) -> ConnectOptions {
    ConnectOptions {
        name: "smoke".to_owned(),
        instance: 1,
        features: Features {
            shared_memory,
            crc: false,
        },
        response_window: 1 << 18,
        earlier: 0,
        timeout: Duration::from_secs(5),
        server_uids: Vec::new(),
    }
}

/// The payload of the next frame of a kind, within bounded time.
fn next(connection: &mut Connection, kind: Kind) -> Vec<u8> {
    let mut scratch = vec![0; connection.reader.scratch_len()];
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let mut found = None;
        connection
            .reader
            .read(&mut scratch, |frame| {
                if frame.kind == kind {
                    found = Some(frame.payload.to_vec());
                }
                Ok::<_, TransportError>(())
            })
            .unwrap();
        flush(&mut connection.reader, &mut connection.writer).unwrap();
        if let Some(payload) = found {
            return payload;
        }
        assert!(Instant::now() < until, "no {kind:?} came");
    }
}

#[test]
fn echo_and_async_over_both_carriers() {
    let base = tempfile::tempdir().unwrap();
    std::fs::set_permissions(base.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let dir = RuntimeDir::for_socket(base.path().join("daemon.sock"));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut server = Server::new(Options::default());
    server.handle(MessageType::ECHO, |request, reply| {
        reply.send_body(request.into_body());
    });
    server.handle_async(MessageType::CHAT, |request, mut responder| async move {
        let body = request.body.to_vec();
        drop(request);
        responder.send(&body).await.unwrap();
        responder.end().await.unwrap();
    });
    let running = server
        .start(Listener::bind(&dir).unwrap(), runtime.handle())
        .unwrap();
    for shared_memory in [true, false] {
        let (mut connection, welcome) = connect(dir.socket(), &options(shared_memory)).unwrap();
        assert_eq!(welcome.features.shared_memory, shared_memory);
        for id in 1..=100 {
            let sent =
                connection
                    .writer
                    .frame(Kind::Open, FIN, MessageType::ECHO.0, id, &[], b"hello");
            assert!(sent.unwrap());
            connection.writer.flush().unwrap();
            assert_eq!(next(&mut connection, Kind::End), b"hello");
        }
        let sent = connection
            .writer
            .frame(Kind::Open, FIN, MessageType::CHAT.0, 101, &[], b"hi");
        assert!(sent.unwrap());
        connection.writer.flush().unwrap();
        assert_eq!(next(&mut connection, Kind::Data), b"hi");
        let sent = connection
            .writer
            .frame(Kind::Open, FIN, 0x7FFF, 102, &[], b"hi");
        assert!(sent.unwrap());
        connection.writer.flush().unwrap();
        let error = String::from_utf8(next(&mut connection, Kind::Error)).unwrap();
        assert!(error.contains("unknown_type"), "{error}");
    }
    running.handle().shutdown(Duration::from_secs(1));
    running.join();
    assert!(!dir.socket().exists() && !dir.lock().exists());
}
