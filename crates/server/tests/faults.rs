//! Everything that a client can do wrong on an open connection: it is told the fault's name and cut off, and nobody
//! else notices.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use std::sync::atomic::Ordering;

use lapce_ai_proto::{CRC, Class, ErrorCode, FIN, Fault, Hello, Kind, MORE, OpenPrefix, PREFIX};
use lapce_ai_server::Responder;
use lapce_ai_shm::layout;
use support::{
    ASYNC_ECHO, Carrier, Client, Daemon, ECHO, LENGTH, OWN, Witness, options, pattern, prefix,
};

/// A mistake, the fault that it is, and where it can be made.
struct Mistake {
    name: &'static str,
    fault: Fault,
    make: fn(&mut Client),
    /// Where it can be made: over shared memory or not, with the CRC or without.
    only: fn(Carrier) -> bool,
}

const fn mistake(name: &'static str, fault: Fault, make: fn(&mut Client)) -> Mistake {
    Mistake {
        name,
        fault,
        make,
        only: |_| true,
    }
}

fn echo_frame(client: &mut Client) -> Vec<u8> {
    let id = client.id();
    client.codec.encode(Kind::Open, FIN, ECHO, id, b"hello")
}

const MISTAKES: &[Mistake] = &[
    mistake("another magic", Fault::BadMagic, |client| {
        let frame = echo_frame(client);
        client.send_changed(frame, |frame| frame[0] ^= 1);
    }),
    mistake("zeros", Fault::BadMagic, |client| {
        assert!(client.bytes(&[0; 24]));
    }),
    mistake("another version", Fault::BadVersion, |client| {
        let frame = echo_frame(client);
        client.send_changed(frame, |frame| frame[4] = 2);
    }),
    mistake("a kind of 0", Fault::BadKind, |client| {
        let frame = echo_frame(client);
        client.send_changed(frame, |frame| frame[5] &= CRC);
    }),
    mistake(
        "a kind that is not in the table",
        Fault::BadKind,
        |client| {
            let frame = echo_frame(client);
            client.send_changed(frame, |frame| frame[5] = frame[5] & CRC | 12);
        },
    ),
    mistake("the daemon's ACCEPTED", Fault::BadKind, |client| {
        client.send(Kind::Accepted, 0, 0, 1, &[]);
    }),
    mistake("the daemon's ERROR", Fault::BadKind, |client| {
        client.send(Kind::Error, 0, 8, 0, b"{}");
    }),
    mistake("the daemon's GOAWAY", Fault::BadKind, |client| {
        client.send(Kind::GoAway, 0, 0, 0, &[0; 16]);
    }),
    mistake("the daemon's WELCOME", Fault::BadKind, |client| {
        client.send(Kind::Welcome, 0, 0, 0, &[0; 64]);
    }),
    mistake(
        "a flag that CANCEL does not have",
        Fault::BadFlags,
        |client| {
            client.send(Kind::Cancel, FIN, 0, 1, &[]);
        },
    ),
    mistake("MORE on OPEN", Fault::BadFlags, |client| {
        client.send(Kind::Open, FIN | MORE, ECHO, 1, b"x");
    }),
    mistake("MORE on a request's DATA", Fault::BadFlags, |client| {
        let id = client.begin(ECHO, 10, &[]);
        client.send(Kind::Data, MORE, 0, id, b"x");
    }),
    mistake("FIN on a request's END", Fault::BadFlags, |client| {
        let id = client.begin(ECHO, 10, &[]);
        client.send(Kind::End, FIN, 0, id, b"x");
    }),
    mistake(
        "OPEN with neither FIN nor prefix",
        Fault::BadFlags,
        |client| {
            client.send(Kind::Open, 0, ECHO, 1, b"x");
        },
    ),
    mistake("a type on PING", Fault::BadType, |client| {
        client.send(Kind::Ping, 0, 1, 0, &[0; 8]);
    }),
    mistake("OPEN with id 0", Fault::BadId, |client| {
        client.send(Kind::Open, FIN, ECHO, 0, b"x");
    }),
    mistake("PING with an id", Fault::BadId, |client| {
        client.send(Kind::Ping, 0, 0, 1, &[0; 8]);
    }),
    mistake("DATA of a stream that never was", Fault::BadId, |client| {
        client.send(Kind::Data, 0, 0, 77, b"x");
    }),
    mistake(
        "CREDIT of a stream that never was",
        Fault::BadId,
        |client| {
            client.credit(77, 1);
        },
    ),
    mistake("an id twice", Fault::IdReused, |client| {
        client.send(Kind::Open, FIN, ECHO, 5, b"x");
        client.send(Kind::Open, FIN, ECHO, 5, b"x");
    }),
    mistake("an id that goes back", Fault::IdReused, |client| {
        client.send(Kind::Open, FIN, ECHO, u64::MAX, b"x");
        client.send(Kind::Open, FIN, ECHO, 1, b"x");
    }),
    mistake("a frame that is too long", Fault::FrameTooLarge, |client| {
        let most = client.welcome.limits.max_frame_payload as usize;
        client.send(Kind::Open, FIN, ECHO, 1, &pattern(1, most + 1));
    }),
    mistake(
        "a frame of 4 GiB, by its header",
        Fault::FrameTooLarge,
        |client| {
            let frame = echo_frame(client);
            client.send_changed(frame, |frame| frame[8..12].fill(0xFF));
        },
    ),
    Mistake {
        only: |carrier| carrier.shared_memory,
        ..mistake("half a frame", Fault::TornFrame, |client| {
            let frame = echo_frame(client);
            assert!(client.bytes(&frame[..26]));
        })
    },
    Mistake {
        only: |carrier| carrier.shared_memory,
        ..mistake("half a header", Fault::TornFrame, |client| {
            let frame = echo_frame(client);
            assert!(client.bytes(&frame[..20]));
        })
    },
    Mistake {
        only: |carrier| carrier.shared_memory,
        ..mistake(
            "half a frame behind a whole one",
            Fault::TornFrame,
            |client| {
                let (whole, half) = (echo_frame(client), echo_frame(client));
                assert!(client.bytes(&[&whole[..], &half[..25]].concat()));
            },
        )
    },
    Mistake {
        only: |carrier| carrier.crc,
        ..mistake("no CRC where it is on", Fault::CrcMissing, |client| {
            let mut frame = echo_frame(client);
            frame[5] &= !CRC;
            assert!(client.bytes(&frame));
        })
    },
    Mistake {
        only: |carrier| carrier.crc,
        ..mistake("a CRC that is wrong", Fault::CrcMismatch, |client| {
            let mut frame = echo_frame(client);
            frame[20] ^= 1;
            assert!(client.bytes(&frame));
        })
    },
    Mistake {
        only: |carrier| carrier.crc,
        ..mistake(
            "a bit of the payload that flipped",
            Fault::CrcMismatch,
            |client| {
                let mut frame = echo_frame(client);
                frame[26] ^= 0x10;
                assert!(client.bytes(&frame));
            },
        )
    },
    Mistake {
        only: |carrier| !carrier.crc,
        ..mistake("a CRC where it is off", Fault::CrcUnexpected, |client| {
            let mut frame = echo_frame(client);
            frame[5] |= CRC;
            assert!(client.bytes(&frame));
        })
    },
    Mistake {
        only: |carrier| !carrier.crc,
        ..mistake("a CRC without its flag", Fault::CrcUnexpected, |client| {
            let mut frame = echo_frame(client);
            frame[20] = 1;
            assert!(client.bytes(&frame));
        })
    },
    mistake("CREDIT of three bytes", Fault::BadPayload, |client| {
        client.send(Kind::Credit, 0, 0, 1, &[0; 3]);
    }),
    mistake("CANCEL with a payload", Fault::BadPayload, |client| {
        client.send(Kind::Cancel, 0, 0, 1, b"x");
    }),
    mistake("PING of nine bytes", Fault::BadPayload, |client| {
        client.send(Kind::Ping, 0, 0, 0, &[0; 9]);
    }),
    mistake("a prefix cut short", Fault::BadPayload, |client| {
        client.send(Kind::Open, FIN | PREFIX, ECHO, 1, &[0; 31]);
    }),
    mistake(
        "a class that is not in the table",
        Fault::BadPayload,
        |client| {
            let mut payload = prefix(0).encode();
            payload[12] = Class::Bulk as u8 + 1;
            client.send(Kind::Open, FIN | PREFIX, ECHO, 1, &payload);
        },
    ),
    mistake(
        "a whole request of another length",
        Fault::LengthMismatch,
        |client| {
            client.open_with(ECHO, &prefix(3), b"four");
        },
    ),
    mistake(
        "a first piece longer than all",
        Fault::LengthMismatch,
        |client| {
            client.begin(ECHO, 3, b"four");
        },
    ),
    mistake(
        "an END that comes too early",
        Fault::LengthMismatch,
        |client| {
            let id = client.begin(ECHO, 100, &[]);
            client.await_credit(id);
            client.send(Kind::Data, 0, 0, id, b"x");
            client.send(Kind::End, 0, 0, id, b"x");
        },
    ),
    mistake(
        "an END before any credit",
        Fault::LengthMismatch,
        |client| {
            let id = client.begin(ECHO, 100, &[]);
            client.send(Kind::End, 0, 0, id, &[]);
        },
    ),
    mistake("DATA without credit", Fault::CreditExceeded, |client| {
        // In one go: between two the credit could come.
        let id = client.id();
        let open = prefix(100).encode();
        let open = client.codec.encode(Kind::Open, PREFIX, ECHO, id, &open);
        let data = client.codec.encode(Kind::Data, 0, 0, id, b"x");
        assert!(client.bytes(&[open, data].concat()));
    }),
    mistake(
        "more DATA than the total",
        Fault::CreditExceeded,
        |client| {
            let id = client.begin(ECHO, 100, &[]);
            client.await_credit(id);
            client.send(Kind::Data, 0, 0, id, &[1; 101]);
        },
    ),
    mistake("an END that is too long", Fault::CreditExceeded, |client| {
        let id = client.begin(ECHO, 100, &[]);
        client.await_credit(id);
        client.send(Kind::Data, 0, 0, id, &[1; 60]);
        client.send(Kind::End, 0, 0, id, &[1; 60]);
    }),
    mistake("credit beyond its bound", Fault::CreditOverflow, |client| {
        let id = client.open(OWN, b"x");
        client.credit(id, i32::MAX as u32);
    }),
    mistake(
        "credit that wraps around",
        Fault::CreditOverflow,
        |client| {
            let id = client.open(OWN, b"x");
            client.credit(id, u32::MAX);
        },
    ),
    mistake(
        "a window beyond its bound",
        Fault::CreditOverflow,
        |client| {
            let prefix = OpenPrefix {
                response_window: u32::MAX,
                ..prefix(1)
            };
            client.open_with(ECHO, &prefix, b"x");
        },
    ),
    mistake(
        "more OPEN payload than the window",
        Fault::WindowExceeded,
        |client| {
            // In pieces that nothing answers: the budget is all taken.
            for _ in 0..9 {
                client.begin(ECHO, 1 << 20, &[1; 4000]);
            }
        },
    ),
    mistake(
        "more streams than may be",
        Fault::TooManyStreams,
        |client| {
            for _ in 0..17 {
                client.open(OWN, b"x");
            }
        },
    ),
    mistake("a second HELLO", Fault::UnexpectedFrame, |client| {
        let hello = Hello::new("again", 1, client.welcome.features, 0);
        client.send(Kind::Hello, 0, 0, 0, &hello.encode());
    }),
    mistake(
        "DATA of a request that was whole",
        Fault::UnexpectedFrame,
        |client| {
            let id = client.open(OWN, b"x");
            client.send(Kind::Data, 0, 0, id, b"x");
        },
    ),
    mistake("DATA behind END", Fault::UnexpectedFrame, |client| {
        let id = client.upload(OWN, b"x");
        client.send(Kind::Data, 0, 0, id, b"x");
    }),
    Mistake {
        only: |carrier| carrier.shared_memory,
        ..mistake("a tail that goes back", Fault::RingCorrupt, |client| {
            client.echo(100);
            scribble(
                client,
                layout::REQUEST_CONTROL_OFFSET + layout::TAIL_OFFSET,
                1,
            );
        })
    },
    Mistake {
        only: |carrier| carrier.shared_memory,
        ..mistake("a tail beyond the ring", Fault::RingCorrupt, |client| {
            let at = layout::REQUEST_CONTROL_OFFSET + layout::TAIL_OFFSET;
            scribble(client, at, u64::MAX);
        })
    },
    Mistake {
        only: |carrier| carrier.shared_memory,
        ..mistake("a restart that cannot be", Fault::RingCorrupt, |client| {
            let at = layout::REQUEST_CONTROL_OFFSET + layout::RESTART_OFFSET;
            client.mapping().atomic_u64(at).store(5, Ordering::SeqCst);
            scribble(
                client,
                layout::REQUEST_CONTROL_OFFSET + layout::TAIL_OFFSET,
                30,
            );
        })
    },
];

/// Writes a word and rings.
fn scribble(client: &mut Client, offset: usize, word: u64) {
    let mapping = client.mapping();
    mapping.atomic_u64(offset).store(word, Ordering::SeqCst);
    let _ = lapce_ai_shm::Bell::new(&client.socket).ring();
}

/// A daemon where type [`OWN`] never answers.
fn daemon() -> Daemon {
    Daemon::with(options(), |server| {
        server.handle_async(
            lapce_ai_proto::MessageType(OWN),
            |_, responder: Responder| async move {
                std::future::pending::<()>().await;
                drop(responder);
            },
        );
    })
}

#[test]
fn every_mistake_is_named_and_ends_its_connection_only() {
    let daemon = daemon();
    for carrier in Carrier::ALL {
        let witness = Witness::new(&daemon, carrier);
        for mistake in MISTAKES.iter().filter(|mistake| (mistake.only)(carrier)) {
            println!("{}: {carrier:?}", mistake.name);
            let faults = daemon.handle.counters().faults;
            let mut client = Client::new(&daemon, carrier);
            // So much of the budget is taken that an upload of its rest waits.
            let mut greedy = (mistake.fault == Fault::WindowExceeded).then(|| greedy(&daemon));
            (mistake.make)(&mut client);
            client.expect_fault(mistake.fault);
            assert_eq!(daemon.handle.counters().faults, faults + 1);
            if let Some(greedy) = &mut greedy {
                greedy.echo(10);
            }
            drop((client, greedy));
            daemon.await_quiet(1);
        }
        witness.was_served();
        daemon.await_quiet(0);
    }
}

/// A client that holds the whole budget.
fn greedy(daemon: &Daemon) -> Client {
    let mut client = Client::new(daemon, Carrier::SHARED_MEMORY);
    for _ in 0..4 {
        let id = client.begin(LENGTH, 1 << 20, &[]);
        client.await_credit(id);
    }
    client
}

#[test]
fn what_is_no_fault() {
    let daemon = daemon();
    for carrier in Carrier::ALL {
        let witness = Witness::new(&daemon, carrier);
        let mut client = Client::new(&daemon, carrier);
        // Ids may have gaps.
        client.send(Kind::Open, FIN, ECHO, 10, b"ten");
        assert_eq!(client.answer(10), b"ten");
        // Frames for streams that have ended are ignored.
        client.send(Kind::Cancel, 0, 0, 3, &[]);
        client.send(Kind::Cancel, 0, 0, 10, &[]);
        // So is a CANCEL of what never was.
        client.send(Kind::Cancel, 0, 0, 77, &[]);
        client.send(Kind::Data, 0, 0, 10, b"late");
        client.send(Kind::End, 0, 0, 10, b"late");
        client.credit(10, u32::MAX);
        // Unknown types are the request's error.
        client.send(Kind::Open, FIN, 0x7FFF, 11, b"?");
        assert_eq!(client.error_of(11).code, ErrorCode::UnknownType);
        let id = 12;
        let payload = prefix(5000).encode();
        client.send(Kind::Open, PREFIX, 0xFFFF, id, &payload);
        assert_eq!(client.error_of(id).code, ErrorCode::UnknownType);
        client.send(Kind::End, 0, 0, id, b"under way");
        // So is a length that is too large.
        let payload = prefix((1 << 20) + 1).encode();
        client.send(Kind::Open, PREFIX, ECHO, 13, &payload);
        assert_eq!(client.error_of(13).code, ErrorCode::MessageTooLarge);
        let payload = prefix(usize::MAX).encode();
        client.send(Kind::Open, PREFIX, ECHO, 14, &payload);
        assert_eq!(client.error_of(14).code, ErrorCode::MessageTooLarge);
        // A PING is answered, an answer is not.
        client.send(Kind::Ping, FIN, 0, 0, b"no reply");
        client.send(Kind::Ping, 0, 0, 0, b"12345678");
        let pong = client.next().unwrap();
        assert_eq!((pong.kind, pong.flags, pong.id), (Kind::Ping, FIN, 0));
        assert_eq!(pong.payload, b"12345678");
        // A request whose first piece is all of it needs no credit for its END.
        let mut id = 20;
        for body in [&b""[..], b"all of it"] {
            for ty in [ECHO, ASYNC_ECHO] {
                id += 1;
                let payload = [prefix(body.len()).encode().as_slice(), body].concat();
                client.send(Kind::Open, PREFIX, ty, id, &payload);
                client.send(Kind::End, 0, 0, id, &[]);
                assert_eq!(client.answer(id), body, "{id}");
            }
        }
        drop(client);
        witness.was_served();
    }
}
