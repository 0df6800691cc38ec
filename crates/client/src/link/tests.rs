//! A link whose daemon is the test itself, step by step.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::atomic::AtomicBool;
use std::task::Wake;
use std::time::Duration;

use lapce_ai_proto::{Control, ErrorBody, ErrorCode, FIN, Features, Kind, Limits};
use lapce_ai_transport::{
    Attempt, ConnectOptions, Connecting, Handshake, Listener, Progress, RuntimeDir, ServerTerms,
};

use super::*;

/// A new link, and the daemon's end of it.
fn linked(shared_memory: bool) -> (Link, Connection) {
    let base = tempfile::tempdir().unwrap();
    let dir = RuntimeDir::for_socket(base.path().join("run/daemon.sock"));
    let listener = Listener::bind(&dir).unwrap();
    let window = 64 << 10;
    let options = ConnectOptions {
        name: "client".to_owned(),
        instance: 1,
        features: Features {
            shared_memory,
            crc: false,
        },
        response_window: window,
        earlier: 0,
        timeout: Duration::ZERO,
        server_uids: Vec::new(),
    };
    let terms = ServerTerms {
        instance: 2,
        name: "daemon".to_owned(),
        limits: Limits {
            max_message_size: 1 << 20,
            max_frame_payload: 2 << 10,
            max_streams: 8,
            inline_window: 64 << 10,
        },
        request_capacity: 4 << 10,
        response_capacity: 4 << 10,
        shared_memory,
        require_crc: false,
        keep_segments: false,
    };
    // Each goes as far as it can without the other, so nobody waits.
    let Attempt::Pending(connecting) = Connecting::begin(dir.socket(), &options).unwrap() else {
        panic!("nobody has answered");
    };
    let socket = listener.accept().unwrap().unwrap();
    let handshake = Handshake::new(socket).unwrap();
    let Progress::Hello(handshake, hello) = handshake.advance().unwrap() else {
        panic!("HELLO was sent");
    };
    let daemon = handshake.accept(hello, &terms, 1).unwrap();
    let Attempt::Done(done) = connecting.advance(&options).unwrap() else {
        panic!("WELCOME was sent");
    };
    let (connection, welcome) = *done;
    (Link::new(connection, welcome, window, 0), daemon)
}

/// Begins a request, or queues for it.
fn begin(link: &Link, body: &[u8], ticket: &mut Option<u64>, waker: &Waker) -> Poll<u32> {
    let body = Body::Lent(body);
    let request = Outgoing {
        ty: MessageType::ECHO,
        body: &body,
        lent: false,
        prefix: None,
        repeatable: false,
        one_item: true,
        may_lag: false,
    };
    link.begin(&request, ticket, waker).map(Result::unwrap)
}

/// Begins a request that need not queue; its slot, and its id.
fn begun(link: &Link, body: &[u8]) -> (u32, u64) {
    match begin(link, body, &mut None, Waker::noop()) {
        Poll::Ready(index) => (index, link.last_id()),
        Poll::Pending => panic!("it queues"),
    }
}

/// Has the client take in what has come: so many frames.
fn pump(link: &Link) -> usize {
    let mut rx = link.rx();
    let (frames, ()) = link.pump(&mut rx, |_| ());
    frames
}

/// Has the daemon take in what has come, and give back its room: so many frames.
fn read(daemon: &mut Connection) -> usize {
    let reader = &mut daemon.reader;
    let mut scratch = vec![0; reader.scratch_len()];
    let frames = reader.read(&mut scratch, |_| Ok::<(), TransportError>(()));
    reader.release().unwrap();
    frames.unwrap()
}

struct Called(AtomicBool);

impl Wake for Called {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn only_what_came_behind_goaway_was_not_run() {
    let (link, mut daemon) = linked(true);
    let (taken, last_id) = begun(&link, b"taken");
    let (late, late_id) = begun(&link, b"late");
    let code = ErrorCode::ServerRestarting;
    let goaway = GoAway {
        last_id,
        drain_ms: 0,
        code,
    };
    let error = |id| Control::Error(id, Box::new(ErrorBody::new(code, "stopping")));
    for control in [Control::GoAway(goaway), error(last_id), error(late_id)] {
        assert!(daemon.writer.control(&control).unwrap());
    }
    daemon.writer.flush().unwrap();
    assert_eq!(pump(&link), 3);
    let outcome = |index| link.tx().take_answer(index, &mut Vec::new(), None);
    match outcome(taken) {
        Poll::Ready(Err(Outcome::Failed(body))) => assert_eq!(body.code, code),
        other => panic!("{other:?}"),
    }
    match outcome(late) {
        Poll::Ready(Err(Outcome::Lost { id, .. })) => assert_eq!(id, None),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_next_in_line_hears_of_room_for_the_one_before_it() {
    let (link, mut daemon) = linked(true);
    // The ring has room for one of them.
    let long = [0; 2000];
    begun(&link, &long);
    assert!(!link.is_blocked());
    begun(&link, &long);
    assert!(link.is_blocked());
    let called = Arc::new(Called(AtomicBool::new(false)));
    let waker = Waker::from(Arc::clone(&called));
    let mut ticket = None;
    assert!(begin(&link, b"next", &mut ticket, &waker).is_pending());
    assert_eq!(read(&mut daemon), 1);
    assert!(!called.0.load(Ordering::Relaxed));
    assert_eq!(pump(&link), 0, "the daemon has said nothing");
    assert!(called.0.load(Ordering::Relaxed));
    assert!(begin(&link, b"next", &mut ticket, &waker).is_ready());
    assert_eq!(read(&mut daemon), 2);
}

#[test]
fn a_quiet_link_keeps_no_memory_in_free_slots() {
    for shared_memory in [true, false] {
        let (link, mut daemon) = linked(shared_memory);
        let kept = || -> usize {
            let tx = link.tx();
            let slots = tx.slots.iter();
            slots
                .map(|slot| slot.bytes.capacity() + slot.body.capacity())
                .sum()
        };
        assert!(!link.may_trim());
        // It would go in pieces, and is answered before the first.
        let (index, id) = begun(&link, &[0; 20_000]);
        let writer = &mut daemon.writer;
        assert!(writer.frame(Kind::End, FIN, 0, id, &[], b"no").unwrap());
        writer.flush().unwrap();
        assert_eq!(pump(&link), 1);
        let mut answer = Vec::with_capacity(1000);
        assert!(link.take_ready(index, &mut answer));
        assert_eq!(answer, b"no");
        assert!(kept() >= 21_000, "{} bytes", kept());
        assert!(link.may_trim());
        link.trim();
        assert!(kept() >= 21_000, "it was in use a moment ago");
        assert!(link.may_trim());
        link.trim();
        assert_eq!(kept(), 0);
        assert!(!link.may_trim());
    }
}
