//! One suite for both carriers, with the CRC on and off: whoever uses a connection cannot tell them apart.
//!
//! One test runs all scenarios one after another, because each of them also counts this process's descriptors.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use std::os::fd::OwnedFd;

use lapce_ai_proto::{
    CRC, Codec, Control, ErrorBody, ErrorCode, FIN, Fault, HEADER_LEN, Hello, ITEM_PREFIX_LEN,
    Kind, MORE, PREFIX, Welcome,
};
use lapce_ai_shm::{Segment, send_with_fd};
use lapce_ai_transport::{
    CONTROL_ROOM, ConnectError, ConnectOptions, Connection, Listener, TransportError, connect,
    flush,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use support::{
    CAPACITY, Carrier, LIMITS, PATIENCE, Pair, Received, accept, await_events, await_frames,
    await_hello, await_room, await_sent, data, meet, options, pattern, place, read, terms, write,
};

type Scenario = (&'static str, fn(Carrier));

const SCENARIOS: &[Scenario] = &[
    ("the handshake agrees", the_handshake_agrees),
    ("frames of every size, both ways", every_size_both_ways),
    ("frames of mixed sizes keep their order", order_of_sizes),
    ("a prefix and its payload are one", prefix_and_payload),
    ("a long frame in two parts", long_frames_in_parts),
    ("many frames, both ways", many_frames),
    ("a full carrier says so and wakes", full_and_woken),
    ("control finds room where data does not", control_finds_room),
    ("control is bounded too", control_is_bounded),
    ("what is not flushed is not seen", flushing),
    ("a message larger than the ring", larger_than_the_ring),
    ("the peer's death, after its frames", death_after_frames),
    ("hanging up, after the frames", hang_up_after_frames),
    ("a sleeper is told of a death", death_of_a_sleepers_peer),
    (
        "a bell can be left until the next sleep",
        bell_left_for_later,
    ),
    (
        "a fault ends the reading, not the frames before it",
        fault_after_frames,
    ),
    ("a handler's error stops the reading", handler_stops),
    ("a refusal is heard", refusal),
    ("a HELLO in pieces", hello_in_pieces),
    ("frames behind HELLO", frames_behind_hello),
    ("garbage instead of HELLO", garbage_for_hello),
    ("no client is left hanging", no_answer),
    ("garbage instead of WELCOME", garbage_for_welcome),
    ("a descriptor too many or too few", descriptors),
    ("a segment that is not what WELCOME says", wrong_segment),
    ("nobody listens", nobody_listens),
    ("the daemon insists on the CRC", required_crc),
    ("the daemon has no shared memory", no_shared_memory),
];

#[test]
fn conformance() {
    // Whatever is opened lazily is open after this.
    drop(Pair::new(Carrier::ALL[0]));
    for carrier in Carrier::ALL {
        for (name, scenario) in SCENARIOS {
            println!("{name}: {carrier:?}");
            let before = descriptors_open();
            scenario(carrier);
            assert_eq!(
                descriptors_open(),
                before,
                "descriptors after \"{name}\" over {carrier:?}"
            );
        }
    }
}

fn descriptors_open() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn the_handshake_agrees(carrier: Carrier) {
    let Pair {
        daemon,
        client,
        welcome,
    } = Pair::new(carrier);
    assert_eq!(welcome.features, options(carrier).features);
    assert_eq!(welcome.limits, LIMITS);
    assert_eq!((welcome.connection, welcome.instance), (3, 2));
    let capacity = if carrier.shared_memory { CAPACITY } else { 0 };
    assert_eq!(
        (welcome.request_capacity, welcome.response_capacity),
        (capacity, capacity)
    );
    assert_eq!(daemon.peer.name, "a client");
    assert_eq!(daemon.peer.instance, 7);
    assert_eq!(client.peer.name, "conformance");
    for peer in [&daemon.peer, &client.peer] {
        assert_eq!(peer.credentials.pid, std::process::id() as i32);
        assert_eq!(peer.shared_memory, carrier.shared_memory);
    }
}

fn every_size_both_ways(carrier: Carrier) {
    let mut pair = Pair::new(carrier);
    let most = LIMITS.max_frame_payload as usize;
    for len in [0, 1, 7, 8, 23, 24, 25, 1000, most - 1, most] {
        let frame = data(len as u64 + 1, len);
        write(&mut pair.client, &frame).unwrap();
        pair.client.writer.flush().unwrap();
        assert_eq!(
            await_frames(&mut pair.daemon).unwrap(),
            std::slice::from_ref(&frame)
        );
        write(&mut pair.daemon, &frame).unwrap();
        pair.daemon.writer.flush().unwrap();
        assert_eq!(await_frames(&mut pair.client).unwrap(), [frame]);
    }
}

/// Small frames may travel together and large ones alone, control frames on their own account; what is written first
/// still arrives first.
fn order_of_sizes(carrier: Carrier) {
    let mut pair = Pair::new(carrier);
    let most = LIMITS.max_frame_payload as usize;
    let sizes = [10, 1001, most, 0, 999, 1000, 64, 24, 500, 500, 500, most, 3];
    for (turn, first) in sizes.iter().enumerate() {
        let sent = [
            data(1, *first),
            data(2, sizes[(turn + 1) % sizes.len()]),
            data(3, sizes[(turn + 5) % sizes.len()] / 2),
        ];
        for frame in &sent {
            write(&mut pair.client, frame).unwrap();
        }
        let cancel = Control::Cancel(9);
        assert!(pair.client.writer.control(&cancel).unwrap());
        pair.client.writer.flush().unwrap();
        let mut received = Vec::new();
        while received.len() < 4 {
            received.extend(await_frames(&mut pair.daemon).unwrap());
        }
        assert_eq!(received[..3], sent);
        assert_eq!(received[3].kind, Kind::Cancel);
    }
}

fn prefix_and_payload(carrier: Carrier) {
    let mut pair = Pair::new(carrier);
    let prefix = [9; ITEM_PREFIX_LEN];
    let sent = pair
        .daemon
        .writer
        .frame(Kind::Data, MORE | PREFIX, 0, 5, &prefix, b"and so on")
        .unwrap();
    assert!(sent);
    pair.daemon.writer.flush().unwrap();
    let expected = Received {
        kind: Kind::Data,
        flags: MORE | PREFIX,
        ty: 0,
        id: 5,
        payload: [&prefix[..], b"and so on"].concat(),
    };
    assert_eq!(await_frames(&mut pair.client).unwrap(), [expected]);
}

fn long_frames_in_parts(carrier: Carrier) {
    const MOST: usize = 1024;
    let mut pair = Pair::new(carrier);
    let mut scratch = vec![0; pair.daemon.reader.scratch_len()];
    let frame = |kind, flags, id, len| Received {
        kind,
        flags,
        ..data(id, len)
    };
    let mut in_parts = 0;
    // Often enough that every part of a frame once runs over the ring's end.
    for round in 0..40 {
        let frames = [
            data(1, 4096 - round),
            data(2, 10),
            frame(Kind::Data, MORE | PREFIX, 3, 4096),
            frame(Kind::End, FIN, 4, 2000 + round),
            frame(Kind::Open, FIN, 5, 3000),
            data(6, 0),
        ];
        let mut expected = frames.iter();
        for sent in &frames {
            write(&mut pair.client, sent).unwrap();
            pair.client.writer.flush().unwrap();
        }
        while expected.len() > 0 {
            let reader = &mut pair.daemon.reader;
            let batch = reader.receive(&mut scratch, MOST, |frame, rest| {
                let expected = expected.next().unwrap();
                assert_eq!(
                    (frame.kind, frame.flags, frame.id),
                    (expected.kind, expected.flags, expected.id)
                );
                assert_eq!(frame.payload_len(), expected.payload.len());
                assert_eq!(frame.rest as usize, rest.len());
                if rest.len() > 0 {
                    assert!(matches!(frame.kind, Kind::Data | Kind::End));
                    in_parts += 1;
                }
                // What nobody takes is skipped.
                if frame.id != 4 || round % 2 == 0 {
                    let mut payload = frame.payload.to_vec();
                    rest.append_to(&mut payload);
                    assert_eq!(payload, expected.payload);
                }
                Ok::<_, TransportError>(())
            });
            let batch = batch.unwrap();
            flush(&mut pair.daemon.reader, &mut pair.daemon.writer).unwrap();
            if batch.frames == 0 && pair.daemon.reader.prepare_to_sleep().unwrap() {
                await_events(pair.daemon.reader.socket(), PollFlags::IN);
                pair.daemon.reader.drain_bell().unwrap();
                pair.daemon.reader.awake();
            }
        }
    }
    let straight = carrier.shared_memory && !carrier.crc;
    assert_eq!(in_parts, if straight { 40 * 3 } else { 0 });
}

/// Lengths that differ from one frame to the next, over all places of a ring.
fn length(number: u64) -> usize {
    (number.wrapping_mul(2_654_435_761) >> 7) as usize % 700
}

fn send_many(connection: &mut Connection, count: u64) {
    for number in 1..=count {
        write(connection, &data(number, length(number))).unwrap();
        if number % 3 == 0 {
            connection.writer.flush().unwrap();
        }
    }
    let socket = connection.reader.shared_socket();
    await_sent(&mut connection.writer, &*socket).unwrap();
}

fn many_frames(carrier: Carrier) {
    const COUNT: u64 = 4000;
    let Pair {
        mut daemon,
        mut client,
        ..
    } = Pair::new(carrier);
    // One way, then the other: each side sends or reads, and sleeps while it cannot.
    for from_client in [true, false] {
        let (sender, receiver) = if from_client {
            (&mut client, &mut daemon)
        } else {
            (&mut daemon, &mut client)
        };
        std::thread::scope(|scope| {
            scope.spawn(|| send_many(sender, COUNT));
            let mut next = 1;
            while next <= COUNT {
                for frame in await_frames(receiver).unwrap() {
                    assert_eq!(frame, data(next, length(next)));
                    next += 1;
                }
            }
        });
    }
}

/// Writes frames until there is no room, and returns how many they were.
fn fill(connection: &mut Connection) -> u64 {
    let mut count = 0;
    loop {
        let frame = data(count + 1, 1000);
        let written = connection
            .writer
            .frame(Kind::Data, 0, 0, frame.id, &[], &frame.payload)
            .unwrap();
        // Over a socket the kernel takes a part.
        connection.writer.flush().unwrap();
        if !written {
            return count;
        }
        count += 1;
        assert!(count < 100_000, "there is always room");
    }
}

fn full_and_woken(carrier: Carrier) {
    let Pair {
        mut daemon,
        mut client,
        ..
    } = Pair::new(carrier);
    let count = fill(&mut client);
    assert!(client.writer.wait_for_room(1000).unwrap(), "still full");
    if carrier.shared_memory {
        assert!(count < u64::from(CAPACITY) / 1000, "{count}");
    }
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let mut next = 1;
            while next <= count + 1 {
                for frame in await_frames(&mut daemon).unwrap() {
                    assert_eq!(frame, data(next, 1000));
                    next += 1;
                }
            }
        });
        // Only the other side's reading can end this.
        await_room(&mut client, 1000).unwrap();
        write(&mut client, &data(count + 1, 1000)).unwrap();
        let socket = client.reader.shared_socket();
        await_sent(&mut client.writer, &*socket).unwrap();
        reading.join().unwrap();
    });
}

fn control_finds_room(carrier: Carrier) {
    let Pair {
        mut daemon,
        mut client,
        ..
    } = Pair::new(carrier);
    let count = fill(&mut daemon);
    // As long as any ERROR can be.
    let body = ErrorBody::new(ErrorCode::Internal, "\u{1}".repeat(4000));
    let error = Control::Error(count + 1, Box::new(body));
    assert!(
        daemon.writer.control(&error).unwrap(),
        "the room kept for control takes the longest ERROR"
    );
    let mut payload = Vec::new();
    error.parts(&mut payload);
    assert!(HEADER_LEN + payload.len() <= CONTROL_ROOM);
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let socket = daemon.reader.shared_socket();
            await_sent(&mut daemon.writer, &*socket).unwrap();
        });
        let mut frames = Vec::new();
        while frames.len() as u64 <= count {
            frames.extend(await_frames(&mut client).unwrap());
        }
        sending.join().unwrap();
        assert_eq!(frames.pop().unwrap().kind, Kind::Error);
    });
}

fn control_is_bounded(carrier: Carrier) {
    let mut pair = Pair::new(carrier);
    let written = (1..1_000_000_u64).find(|id| {
        let written = pair.daemon.writer.control(&Control::Credit(*id, 1));
        pair.daemon.writer.flush().unwrap();
        !written.unwrap()
    });
    assert!(
        written.is_some(),
        "a peer that never reads could be sent control frames without end"
    );
}

fn flushing(carrier: Carrier) {
    let mut pair = Pair::new(carrier);
    write(&mut pair.client, &data(1, 10)).unwrap();
    write(&mut pair.client, &data(2, 10)).unwrap();
    assert_eq!(read(&mut pair.daemon.reader).unwrap(), []);
    pair.client.writer.flush().unwrap();
    let frames = await_frames(&mut pair.daemon).unwrap();
    assert_eq!(frames, [data(1, 10), data(2, 10)], "in one go");
    assert!(!pair.daemon.reader.has_data().unwrap());
}

fn larger_than_the_ring(carrier: Carrier) {
    const LEN: usize = 1 << 20;
    let Pair {
        mut daemon,
        mut client,
        ..
    } = Pair::new(carrier);
    let message = pattern(1, LEN);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for piece in message.chunks(LIMITS.max_frame_payload as usize) {
                let frame = Received {
                    payload: piece.to_vec(),
                    ..data(1, 0)
                };
                write(&mut client, &frame).unwrap();
            }
            let socket = client.reader.shared_socket();
            await_sent(&mut client.writer, &*socket).unwrap();
        });
        let mut received = Vec::new();
        while received.len() < LEN {
            for frame in await_frames(&mut daemon).unwrap() {
                received.extend_from_slice(&frame.payload);
            }
        }
        assert!(received == message);
    });
}

/// Reads what comes until the peer is gone.
fn read_to_the_end(connection: &mut Connection) -> Vec<Received> {
    let mut frames = Vec::new();
    loop {
        let gone = match await_frames(connection) {
            Ok(more) => {
                frames.extend(more);
                continue;
            }
            Err(error) => error,
        };
        assert!(matches!(gone, TransportError::PeerGone), "{gone}");
        // Over shared memory the bell tells of the end, and the ring is still there.
        match read(&mut connection.reader) {
            Ok(more) if !more.is_empty() => frames.extend(more),
            _ => return frames,
        }
    }
}

fn death_after_frames(carrier: Carrier) {
    for from_client in [true, false] {
        let Pair { daemon, client, .. } = Pair::new(carrier);
        let (mut dying, mut left) = if from_client {
            (client, daemon)
        } else {
            (daemon, client)
        };
        for id in 1..=3 {
            write(&mut dying, &data(id, 500)).unwrap();
        }
        dying.writer.flush().unwrap();
        write(&mut dying, &data(4, 500)).unwrap();
        drop(dying);
        let frames = read_to_the_end(&mut left);
        assert_eq!(
            frames,
            [data(1, 500), data(2, 500), data(3, 500)],
            "what was flushed, and nothing else"
        );
        // Writing does not raise a signal, and tells sooner or later.
        let failed = (0..10).any(|_| {
            left.writer.flush().is_err()
                || left.writer.frame(Kind::Data, 0, 0, 1, &[], b"x").is_err()
                || left.reader.drain_bell().is_err()
        });
        assert!(failed);
    }
}

fn hang_up_after_frames(carrier: Carrier) {
    let mut pair = Pair::new(carrier);
    write(&mut pair.daemon, &data(1, 100)).unwrap();
    pair.daemon.writer.flush().unwrap();
    pair.daemon.writer.hang_up();
    assert_eq!(read_to_the_end(&mut pair.client), [data(1, 100)]);
}

fn death_of_a_sleepers_peer(carrier: Carrier) {
    let Pair {
        mut daemon, client, ..
    } = Pair::new(carrier);
    assert!(daemon.reader.prepare_to_sleep().unwrap());
    std::thread::scope(|scope| {
        let sleeping = scope.spawn(|| read_to_the_end(&mut daemon));
        drop(client);
        assert_eq!(sleeping.join().unwrap(), []);
    });
}

fn bell_left_for_later(carrier: Carrier) {
    let mut pair = Pair::new(carrier);
    for id in 1..=3 {
        let daemon = &mut pair.daemon;
        assert!(daemon.reader.prepare_to_sleep().unwrap());
        write(&mut pair.client, &data(id, 100)).unwrap();
        pair.client.writer.flush().unwrap();
        await_events(daemon.reader.socket(), PollFlags::IN);
        daemon.reader.woken().unwrap();
        assert_eq!(read(&mut daemon.reader).unwrap(), [data(id, 100)]);
        assert_eq!(is_readable(daemon), carrier.shared_memory, "round {id}");
        if id == 2 {
            // Woken again by the bell that was left: it is taken then.
            daemon.reader.woken().unwrap();
            assert!(!is_readable(daemon));
        }
        daemon.reader.take_bell().unwrap();
        assert!(!is_readable(daemon), "round {id}");
    }
    drop(pair.client);
    pair.daemon.reader.woken().unwrap();
    let told = pair.daemon.reader.take_bell();
    assert_eq!(told.is_err(), carrier.shared_memory, "{told:?}");
}

fn is_readable(connection: &Connection) -> bool {
    let socket = connection.reader.socket();
    let mut polled = [PollFd::new(&socket, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec::default())).unwrap() > 0
}

fn fault_after_frames(carrier: Carrier) {
    let mut pair = Pair::new(carrier);
    write(&mut pair.client, &data(1, 100)).unwrap();
    // An id of 0 where a stream is meant.
    let bad = Received {
        id: 0,
        ..data(2, 100)
    };
    write(&mut pair.client, &bad).unwrap();
    pair.client.writer.flush().unwrap();
    let mut frames = Vec::new();
    let mut scratch = vec![0; pair.daemon.reader.scratch_len()];
    await_events(
        pair.daemon.reader.socket(),
        if carrier.shared_memory {
            PollFlags::OUT
        } else {
            PollFlags::IN
        },
    );
    let error = pair
        .daemon
        .reader
        .read(&mut scratch, |frame| {
            frames.push(frame.id);
            Ok::<_, TransportError>(())
        })
        .unwrap_err();
    assert_eq!(error.fault(), Some(Fault::BadId));
    assert_eq!(frames, [1]);
}

fn handler_stops(carrier: Carrier) {
    #[derive(Debug)]
    enum Stop {
        Here(u64),
        Transport(TransportError),
    }
    impl From<TransportError> for Stop {
        fn from(error: TransportError) -> Self {
            Self::Transport(error)
        }
    }
    let mut pair = Pair::new(carrier);
    for id in 1..=3 {
        write(&mut pair.client, &data(id, 10)).unwrap();
    }
    pair.client.writer.flush().unwrap();
    if !carrier.shared_memory {
        await_events(pair.daemon.reader.socket(), PollFlags::IN);
    }
    let mut scratch = vec![0; pair.daemon.reader.scratch_len()];
    let stopped = pair.daemon.reader.read(&mut scratch, |frame| {
        if frame.id == 2 {
            Err(Stop::Here(frame.id))
        } else {
            Ok(())
        }
    });
    match stopped {
        Err(Stop::Here(id)) => assert_eq!(id, 2),
        Err(Stop::Transport(error)) => panic!("{error}"),
        Ok(frames) => panic!("{frames} frames were read"),
    }
    let rest = await_frames(&mut pair.daemon).unwrap();
    assert_eq!(rest, [data(3, 10)], "the one that stopped it is consumed");
}

fn refusal(carrier: Carrier) {
    let body = ErrorBody::new(ErrorCode::TooManyConnections, "1000 are open");
    let (_, client) = meet(&options(carrier), |socket| {
        let (handshake, _) = await_hello(socket).unwrap();
        handshake.refuse(&body);
    });
    let Err(ConnectError::Refused(heard)) = client else {
        panic!("{client:?}");
    };
    assert_eq!(heard, body);
}

fn hello_frame(carrier: Carrier) -> Vec<u8> {
    let hello = Hello::new("raw", 1, options(carrier).features, 1 << 16);
    Codec::HANDSHAKE.encode(Kind::Hello, 0, 0, 0, &hello.encode())
}

/// A socket to a listener, and its other end.
fn raw() -> (std::os::unix::net::UnixStream, OwnedFd) {
    let (_base, dir) = place();
    let listener = Listener::bind(&dir).unwrap();
    let client = std::os::unix::net::UnixStream::connect(dir.socket()).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    (client, accept(&listener))
}

fn hello_in_pieces(carrier: Carrier) {
    use std::io::Write;
    let (mut client, socket) = raw();
    let frame = hello_frame(carrier);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| await_hello(socket).unwrap());
        for byte in frame.chunks(1) {
            client.write_all(byte).unwrap();
        }
        let (_, hello) = waiting.join().unwrap();
        assert_eq!(hello.name, "raw");
        assert_eq!(hello.features, options(carrier).features);
    });
}

fn frames_behind_hello(carrier: Carrier) {
    use std::io::Write;
    let (mut client, socket) = raw();
    let codec = Codec {
        crc: carrier.crc,
        max_payload: LIMITS.max_frame_payload,
    };
    let frame = codec.encode(Kind::Data, 0, 0, 1, b"early");
    client
        .write_all(&[hello_frame(carrier), frame].concat())
        .unwrap();
    let (handshake, hello) = await_hello(socket).unwrap();
    let mut daemon = handshake.accept(hello, &terms(), 1).unwrap();
    // With shared memory, what comes on the socket is only a bell.
    let frames = read(&mut daemon.reader).unwrap();
    if carrier.shared_memory {
        assert_eq!(frames, []);
    } else {
        assert_eq!(frames[0].payload, b"early");
    }
}

fn garbage_for_hello(carrier: Carrier) {
    use std::io::{Read, Write};
    let codec = Codec::HANDSHAKE;
    let mut flagged = hello_frame(carrier);
    flagged[5] |= CRC;
    let mut version = hello_frame(carrier);
    version[4] = 9;
    let bad: [(Vec<u8>, Fault); 7] = [
        (vec![0; 64], Fault::BadMagic),
        (
            b"GET / HTTP/1.1\r\nHost: lapce\r\n\r\n".to_vec(),
            Fault::BadMagic,
        ),
        (version, Fault::BadVersion),
        (flagged, Fault::CrcUnexpected),
        (
            codec.encode(Kind::Ping, 0, 0, 0, &[0; 8]),
            Fault::UnexpectedFrame,
        ),
        (
            codec.encode(Kind::Hello, 0, 0, 0, &[0; 31]),
            Fault::BadPayload,
        ),
        (
            {
                let mut long = hello_frame(carrier);
                long[8..12].copy_from_slice(&5000_u32.to_le_bytes());
                long
            },
            Fault::FrameTooLarge,
        ),
    ];
    for (bytes, fault) in bad {
        let (mut client, socket) = raw();
        client.write_all(&bytes).unwrap();
        let error = await_hello(socket).unwrap_err();
        assert_eq!(error.fault(), Some(fault));
        let mut heard = Vec::new();
        // What was not read of the garbage makes the end a reset; the answer comes before it.
        let _ = client.read_to_end(&mut heard);
        let (frame, _) = codec.decode(&heard).unwrap().unwrap();
        assert_eq!((frame.kind, frame.id), (Kind::Error, 0));
        let body = ErrorBody::read(frame.ty, frame.payload);
        assert_eq!(body.code, ErrorCode::ProtocolError);
        assert_eq!(body.fault.as_deref(), Some(fault.name()));
    }
}

fn no_answer(carrier: Carrier) {
    let (_base, dir) = place();
    let _listener = Listener::bind(&dir).unwrap();
    let options = ConnectOptions {
        earlier: 0,
        timeout: std::time::Duration::from_millis(20),
        ..options(carrier)
    };
    let error = connect(dir.socket(), &options).unwrap_err();
    assert!(matches!(error, ConnectError::TimedOut { .. }), "{error}");
    let (_, client) = meet(&support::options(carrier), drop);
    assert!(
        matches!(
            client,
            Err(ConnectError::Transport(TransportError::PeerGone))
        ),
        "{client:?}"
    );
}

/// What a client makes of these bytes and this descriptor in place of WELCOME.
fn answered_with(carrier: Carrier, bytes: &[u8], descriptor: Option<&OwnedFd>) -> ConnectError {
    use std::os::fd::AsFd;
    let (_, client) = meet(&options(carrier), |socket| {
        let descriptor = descriptor.map(AsFd::as_fd);
        send_with_fd(&socket, bytes, descriptor).unwrap();
        // Its HELLO is read, so that the end is no reset.
        let _ = await_hello(socket);
    });
    client.unwrap_err()
}

fn welcome(carrier: Carrier) -> Welcome {
    let capacity = if carrier.shared_memory { CAPACITY } else { 0 };
    Welcome {
        version: 1,
        features: options(carrier).features,
        instance: 1,
        connection: 1,
        limits: LIMITS,
        request_capacity: capacity,
        response_capacity: capacity,
        name: "raw".to_owned(),
    }
}

fn welcome_frame(welcome: &Welcome) -> Vec<u8> {
    Codec::HANDSHAKE.encode(Kind::Welcome, 0, 0, 0, &welcome.encode())
}

fn garbage_for_welcome(carrier: Carrier) {
    let mut wrong_version = welcome_frame(&welcome(carrier));
    wrong_version[HEADER_LEN] = 2;
    let bad = [
        (vec![0; 64], Fault::BadMagic),
        (wrong_version, Fault::BadVersion),
        (
            Codec::HANDSHAKE.encode(Kind::Welcome, 0, 0, 0, &[1; 20]),
            Fault::BadPayload,
        ),
        (
            Codec::HANDSHAKE.encode(Kind::Ping, FIN, 0, 0, &[0; 8]),
            Fault::UnexpectedFrame,
        ),
    ];
    for (bytes, fault) in bad {
        let error = answered_with(carrier, &bytes, None);
        let ConnectError::Transport(error) = error else {
            panic!("{error}");
        };
        assert_eq!(error.fault(), Some(fault));
    }
}

fn descriptors(carrier: Carrier) {
    let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    let descriptor = (!carrier.shared_memory).then_some(&file);
    let error = answered_with(carrier, &welcome_frame(&welcome(carrier)), descriptor);
    let ConnectError::Transport(error) = error else {
        panic!("{error}");
    };
    assert_eq!(error.fault(), Some(Fault::BadPayload));
}

fn wrong_segment(carrier: Carrier) {
    if !carrier.shared_memory {
        return;
    }
    let frame = welcome_frame(&welcome(carrier));
    let null: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    let (_segment, other_size) = Segment::create(CAPACITY, 2 * CAPACITY).unwrap();
    for descriptor in [null, other_size] {
        let error = answered_with(carrier, &frame, Some(&descriptor));
        assert!(matches!(error, ConnectError::Segment(_)), "{error}");
    }
}

fn nobody_listens(carrier: Carrier) {
    let (_base, dir) = place();
    let error = connect(dir.socket(), &options(carrier)).unwrap_err();
    assert!(matches!(error, ConnectError::NotRunning { .. }), "{error}");
    // A stale socket is the same to a client.
    drop(Listener::bind(&dir).unwrap());
    let error = connect(dir.socket(), &options(carrier)).unwrap_err();
    assert!(matches!(error, ConnectError::NotRunning { .. }), "{error}");
}

fn required_crc(carrier: Carrier) {
    let terms = lapce_ai_transport::ServerTerms {
        require_crc: true,
        keep_segments: false,
        ..terms()
    };
    let mut pair = Pair::with(carrier, &terms);
    assert!(pair.welcome.features.crc);
    write(&mut pair.client, &data(1, 10)).unwrap();
    pair.client.writer.flush().unwrap();
    assert_eq!(await_frames(&mut pair.daemon).unwrap(), [data(1, 10)]);
}

fn no_shared_memory(carrier: Carrier) {
    let terms = lapce_ai_transport::ServerTerms {
        shared_memory: false,
        ..terms()
    };
    let mut pair = Pair::with(carrier, &terms);
    assert!(!pair.welcome.features.shared_memory);
    assert!(!pair.client.peer.shared_memory && !pair.daemon.peer.shared_memory);
    write(&mut pair.daemon, &data(1, 10)).unwrap();
    pair.daemon.writer.flush().unwrap();
    assert_eq!(await_frames(&mut pair.client).unwrap(), [data(1, 10)]);
}
