//! Who is served first when several have something: rule 11, through the whole server. What happens is recorded, not timed.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use lapce_ai_proto::{Class, MessageType, OpenPrefix};
use lapce_ai_server::Options;
use support::{Carrier, Client, Daemon, ECHO, OWN, PATIENCE, options, prefix};

/// Has the reactor's thread wait until it is let go.
const GATE: u16 = OWN + 1;

struct Stage {
    daemon: Daemon,
    /// First bytes of the requests in the order in which they were served.
    served: Arc<Mutex<Vec<u8>>>,
    closed: mpsc::Receiver<()>,
    open: mpsc::SyncSender<()>,
}

impl Stage {
    /// A server whose connections stay hot for as long as the test takes.
    fn new() -> Self {
        let served = Arc::new(Mutex::new(Vec::new()));
        let (tell, closed) = mpsc::channel();
        let (open, gate) = mpsc::sync_channel(1);
        let order = Arc::clone(&served);
        let patient = Options {
            spin: Duration::from_secs(60),
            ..options()
        };
        let daemon = Daemon::with(patient, move |server| {
            server.handle(MessageType(OWN), move |request, reply| {
                order.lock().unwrap().push(request.body()[0]);
                reply.send(&[]);
            });
            server.handle(MessageType(GATE), move |_, reply| {
                tell.send(()).unwrap();
                gate.recv_timeout(PATIENCE).unwrap();
                reply.send(&[]);
            });
        });
        Self {
            daemon,
            served,
            closed,
            open,
        }
    }

    /// A connection that is hot, and of this class.
    fn client(&self, class: Class) -> Client {
        let mut client = Client::new(&self.daemon, Carrier::SHARED_MEMORY);
        let id = client.open_with(ECHO, &of(class, 1), b"x");
        client.answer(id);
        client
    }

    /// Has `meanwhile` happen while the reactor is held up.
    fn hold(&self, meanwhile: impl FnOnce()) {
        let mut gate = Client::new(&self.daemon, Carrier::SHARED_MEMORY);
        let id = gate.open(GATE, &[]);
        self.closed.recv_timeout(PATIENCE).unwrap();
        self.served.lock().unwrap().clear();
        meanwhile();
        self.open.send(()).unwrap();
        gate.answer(id);
    }
}

fn of(class: Class, len: usize) -> OpenPrefix {
    OpenPrefix {
        class,
        ..prefix(len)
    }
}

/// Bytes of a frame with a prefix and one byte.
const FRAME: usize = 24 + 32 + 1;

#[test]
fn interactive_requests_overtake_a_flood_of_bulk() {
    let stage = Stage::new();
    let mut bulk = stage.client(Class::Bulk);
    let mut interactive = stage.client(Class::Interactive);
    let (mut floods, mut asked) = (Vec::new(), Vec::new());
    stage.hold(|| {
        for _ in 0..200 {
            floods.push(bulk.open_with(OWN, &of(Class::Bulk, 1), b"b"));
        }
        for _ in 0..50 {
            asked.push(interactive.open_with(OWN, &of(Class::Interactive, 1), b"i"));
        }
    });
    for id in asked {
        interactive.answer(id);
    }
    for id in floods {
        bulk.answer(id);
    }
    let order = stage.served.lock().unwrap().clone();
    assert_eq!(order.len(), 250);
    // One short batch of bulk at most was before each of the interactive ones, which came in one batch or two.
    let before = order.iter().take_while(|who| **who == b'b').count();
    let last = order.iter().rposition(|who| *who == b'i').unwrap();
    let short = (1 << 10) / FRAME + 1;
    assert!(before <= short, "{before}");
    assert!(last < 50 + 2 * short, "{last}");
}

#[test]
fn bulk_goes_on_beside_a_flood_that_claims_to_be_interactive() {
    let stage = Stage::new();
    let mut bulk = stage.client(Class::Bulk);
    let mut floods: Vec<_> = (0..8).map(|_| stage.client(Class::Interactive)).collect();
    let (mut asked, mut flood) = (Vec::new(), Vec::new());
    stage.hold(|| {
        for client in &mut floods {
            for _ in 0..200 {
                flood.push(client.open_with(OWN, &of(Class::Interactive, 1), b"i"));
            }
        }
        for _ in 0..100 {
            asked.push(bulk.open_with(OWN, &of(Class::Bulk, 1), b"b"));
        }
    });
    for id in asked {
        bulk.answer(id);
    }
    for (at, id) in flood.into_iter().enumerate() {
        floods[at / 200].answer(id);
    }
    let order = stage.served.lock().unwrap().clone();
    assert_eq!(order.len(), 1700);
    // After what interactive work has saved up, 64 KiB or 1,150 of these, bulk has its quarter.
    let saved = (64 << 10) / FRAME + 100;
    let rest = &order[saved..saved + 300];
    let share = rest.iter().filter(|who| **who == b'b').count();
    assert!(share >= 50, "{share} of {}", rest.len());
}

#[test]
fn a_type_has_a_class_of_its_own() {
    assert_eq!(MessageType::AUTOCOMPLETE.class(), Class::Interactive);
    assert_eq!(MessageType::EMBEDDINGS.class(), Class::Bulk);
    assert_eq!(MessageType::CHAT.class(), Class::Normal);
}
