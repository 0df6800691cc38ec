//! Segments, bells and descriptors between real descriptors and real processes.

#![cfg(not(ring_loom))]
#![allow(
    clippy::unwrap_used,
    reason = "the helpers of tests are not seen as tests"
)]

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lapce_ai_shm::{
    Bell, BellError, Consumer, FdError, MAX_FDS, MappedRing, Mapping, Producer, Segment, ShmError,
    Storage, Woken, layout, peer_credentials, publish_and_release, recv_with_fd, recv_with_fds,
    send_with_fd, send_with_fds, take_inherited,
};
use rustix::fs::{
    MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, ftruncate, memfd_create,
};

const KIB_4: u32 = 4096;

fn segment() -> (Segment, OwnedFd) {
    Segment::create(2 * KIB_4, KIB_4).unwrap()
}

/// The length of a segment of 8 KiB and 4 KiB.
const LEN: u64 = 4096 + 8192 + 4096;

fn open(file: OwnedFd) -> Result<Segment, ShmError> {
    Segment::open(file, 2 * KIB_4, KIB_4)
}

/// A memfd of the given length and seals.
fn memfd(len: u64, seals: SealFlags) -> OwnedFd {
    let file = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&file, len).unwrap();
    fcntl_add_seals(&file, seals).unwrap();
    file
}

const SEALED: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

/// The flags of this process's mappings of segments, as the kernel says them.
fn flags_of_segments() -> Vec<String> {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let segments = maps.split("memfd:lapce-ai").skip(1);
    let flags = segments.filter_map(|rest| rest.lines().find(|line| line.starts_with("VmFlags:")));
    flags.map(str::to_owned).collect()
}

#[test]
fn a_forked_child_has_no_segment() {
    let (_segment, _file) = segment();
    // Other tests of this process may be in the middle of making one.
    let all_stay = || {
        let flags = flags_of_segments();
        !flags.is_empty()
            && flags
                .iter()
                .all(|flags| flags.split(' ').any(|flag| flag == "dc"))
    };
    let seen = (0..1000).any(|_| {
        all_stay() || {
            std::thread::sleep(Duration::from_millis(1));
            false
        }
    });
    assert!(seen, "{:?}", flags_of_segments());
}

#[test]
fn client_cannot_change_the_file() {
    let (_segment, file) = segment();
    for len in [0, LEN - 1, LEN + 1] {
        assert_eq!(ftruncate(&file, len), Err(rustix::io::Errno::PERM));
    }
    let seals = fcntl_get_seals(&file).unwrap();
    assert!(seals.contains(SEALED), "{seals:?}");
    assert_eq!(
        fcntl_add_seals(&file, SealFlags::WRITE),
        Err(rustix::io::Errno::PERM)
    );
    let flags = rustix::io::fcntl_getfd(&file).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
}

#[test]
fn header_is_as_the_layout_says() {
    let (segment, _file) = segment();
    let mut header = [0; 32];
    segment.mapping().read(0, &mut header);
    assert_eq!(&header[..8], b"LAPCESHM");
    assert_eq!(header[8..12], 1_u32.to_le_bytes());
    assert_eq!(header[12..16], 4096_u32.to_le_bytes());
    assert_eq!(header[16..24], LEN.to_le_bytes());
    assert_eq!(header[24..28], 8192_u32.to_le_bytes());
    assert_eq!(header[28..32], 4096_u32.to_le_bytes());
    assert_eq!(segment.mapping().len() as u64, LEN);
}

#[test]
fn control_words_and_bytes_are_where_the_layout_says() {
    let (segment, _file) = segment();
    let mapping = Arc::clone(segment.mapping());
    let (mut requests, _) = segment.into_client_ends();
    let word =
        |control: usize, offset| mapping.atomic_u64(control + offset).load(Ordering::Acquire);
    assert_eq!(requests.push(&[b"abc"]), Ok(true));
    let _ = requests.publish();
    assert_eq!(word(layout::REQUEST_CONTROL_OFFSET, layout::TAIL_OFFSET), 3);
    let mut bytes = [0; 3];
    mapping.read(layout::REQUEST_BYTES_OFFSET, &mut bytes);
    assert_eq!(&bytes, b"abc");
    assert_eq!(requests.wait_for_space(8190), Ok(true));
    let wanted = layout::REQUEST_CONTROL_OFFSET + layout::SPACE_WANTED_OFFSET;
    assert_eq!(mapping.atomic_u32(wanted).load(Ordering::Relaxed), 8190);

    let (segment, _file) = Segment::create(KIB_4, KIB_4).unwrap();
    let mapping = Arc::clone(segment.mapping());
    let (mut server_requests, mut responses) = segment.into_server_ends();
    assert_eq!(responses.push(&[b"xyz"]), Ok(true));
    let _ = responses.publish();
    mapping.read(0x2000, &mut bytes);
    assert_eq!(&bytes, b"xyz");
    let tail = mapping.atomic_u64(layout::RESPONSE_CONTROL_OFFSET);
    assert_eq!(tail.load(Ordering::Acquire), 3);
    assert_eq!(server_requests.wait_for_data(), Ok(true));
    let wanted = layout::REQUEST_CONTROL_OFFSET + layout::DATA_WANTED_OFFSET;
    assert_eq!(mapping.atomic_u32(wanted).load(Ordering::Relaxed), 1);
}

#[test]
fn open_refuses_what_is_no_segment() {
    let null = File::open("/dev/null").unwrap();
    assert!(matches!(open(null.into()), Err(ShmError::NotMemfd)));
    let regular = File::open(std::env::current_exe().unwrap()).unwrap();
    assert!(matches!(open(regular.into()), Err(ShmError::NotMemfd)));
    let socket = UnixStream::pair().unwrap().0;
    assert!(matches!(open(socket.into()), Err(ShmError::NotMemfd)));

    for seals in [
        SealFlags::empty(),
        SealFlags::GROW | SealFlags::SEAL,
        SealFlags::SHRINK | SealFlags::SEAL,
        SealFlags::SHRINK | SealFlags::GROW,
    ] {
        let error = open(memfd(LEN, seals)).unwrap_err();
        assert!(
            matches!(error, ShmError::NotSealed { found } if found & seals.bits() == seals.bits())
        );
    }
    for len in [0, 1, LEN - 1, LEN + 1, 1 << 40] {
        let error = open(memfd(len, SEALED)).unwrap_err();
        assert!(matches!(error, ShmError::WrongLen { expected: LEN, found } if found == len));
    }
    assert!(matches!(open(memfd(LEN, SEALED)), Err(ShmError::NotReady)));
    // Sealed against writing: it cannot be mapped as needed, and that is said.
    let error = open(memfd(LEN, SEALED | SealFlags::WRITE)).unwrap_err();
    assert!(
        matches!(error, ShmError::System { call: "mmap", .. }),
        "{error}"
    );
}

#[test]
fn open_refuses_a_wrong_header() {
    let refused_u32 = |offset, value| {
        let (segment, file) = segment();
        segment
            .mapping()
            .atomic_u32(offset)
            .store(value, Ordering::Relaxed);
        open(file).unwrap_err()
    };
    let refused_u64 = |offset, value| {
        let (segment, file) = segment();
        segment
            .mapping()
            .atomic_u64(offset)
            .store(value, Ordering::Relaxed);
        open(file).unwrap_err()
    };
    assert!(matches!(
        refused_u32(layout::VERSION_OFFSET, 0),
        ShmError::NotReady
    ));
    let error = refused_u32(layout::VERSION_OFFSET, 2);
    assert!(matches!(
        error,
        ShmError::WrongLayoutVersion {
            expected: 1,
            found: 2
        }
    ));
    assert_eq!(
        error.to_string(),
        "the segment has layout version 2, this build knows 1"
    );
    let error = refused_u64(layout::MAGIC_OFFSET, 7);
    assert!(matches!(error, ShmError::WrongMagic { found: 7 }));
    let error = refused_u64(layout::SEGMENT_LEN_OFFSET, 1);
    assert!(matches!(
        error,
        ShmError::WrongHeader {
            field: "segment_len",
            found: 1,
            ..
        }
    ));
    let error = refused_u32(layout::HEADER_LEN_OFFSET, 1);
    assert!(matches!(
        error,
        ShmError::WrongHeader {
            field: "header_len",
            expected: 4096,
            ..
        }
    ));
    let error = refused_u32(layout::RESPONSE_CAPACITY_OFFSET, 8192);
    assert!(matches!(
        error,
        ShmError::WrongHeader {
            field: "response_capacity",
            ..
        }
    ));
    // The right sum of lengths in the wrong order.
    let (_segment, file) = segment();
    let error = Segment::open(file, KIB_4, 2 * KIB_4).unwrap_err();
    assert!(matches!(
        error,
        ShmError::WrongHeader {
            field: "request_capacity",
            expected: 4096,
            found: 8192
        }
    ));
}

#[test]
fn capacities_are_checked() {
    for wrong in [0, 1, 2048, 4097, 12288, (1 << 30) + 1, 1 << 31] {
        assert!(
            matches!(Segment::create(wrong, KIB_4), Err(ShmError::InvalidCapacity(found)) if found == wrong)
        );
        assert!(
            matches!(Segment::create(KIB_4, wrong), Err(ShmError::InvalidCapacity(found)) if found == wrong)
        );
        let (_segment, file) = segment();
        assert!(matches!(
            Segment::open(file, wrong, KIB_4),
            Err(ShmError::InvalidCapacity(_))
        ));
    }
    // The largest ones cost nothing until they are touched.
    drop(Segment::create(1 << 30, 1 << 30).unwrap());
    for wrong in [0, u64::MAX, 1 << 63] {
        assert!(
            matches!(Mapping::create(wrong), Err(ShmError::InvalidLen(found)) if found == wrong)
        );
        let file = memfd(4096, SEALED);
        assert!(
            matches!(Mapping::open(file, wrong), Err(ShmError::InvalidLen(found)) if found == wrong)
        );
    }
}

#[test]
fn copies_past_the_caches_write_what_they_should_and_no_more() {
    let (mapping, file) = Mapping::create(10_000).unwrap();
    let other = Mapping::open(file, 10_000).unwrap();
    let source: Vec<u8> = (0..1000_u32).map(|n| (n * 7 + 1) as u8).collect();
    for offset in 0..70 {
        for len in [0, 1, 63, 64, 65, 127, 128, 200, 900] {
            mapping.write(0, &[0xEE; 1100]);
            mapping.write_past_caches(offset, &source[offset..offset + len]);
            let mut found = vec![7];
            other.append_to(0, 1100, &mut found);
            assert_eq!(found[0], 7);
            let found = &found[1..];
            assert!(found[..offset].iter().all(|byte| *byte == 0xEE));
            assert_eq!(found[offset..offset + len], source[offset..offset + len]);
            assert!(found[offset + len..].iter().all(|byte| *byte == 0xEE));
        }
    }
}

#[test]
fn mapping_is_shared_and_bounded() {
    let (mapping, file) = Mapping::create(10_000).unwrap();
    let other = Mapping::open(file, 10_000).unwrap();
    mapping.write(9_990, b"0123456789");
    let mut bytes = [0; 10];
    other.read(9_990, &mut bytes);
    assert_eq!(&bytes, b"0123456789");
    other.atomic_u64(8).store(5, Ordering::Relaxed);
    assert_eq!(mapping.atomic_u32(8).load(Ordering::Relaxed), 5);
    // Empty copies are fine anywhere inside, and at the end.
    mapping.write(10_000, &[]);
    for outside in [(9_991, 10), (10_001, 0), (usize::MAX, 1), (usize::MAX, 10)] {
        let copied = std::panic::catch_unwind(|| mapping.read(outside.0, &mut vec![0; outside.1]));
        assert!(copied.is_err(), "{outside:?}");
        let copied = std::panic::catch_unwind(|| mapping.write(outside.0, &vec![0; outside.1]));
        assert!(copied.is_err(), "{outside:?}");
        let copied = std::panic::catch_unwind(|| {
            mapping.write_past_caches(outside.0, &vec![0; outside.1]);
        });
        assert!(copied.is_err(), "{outside:?}");
        let copied = std::panic::catch_unwind(|| {
            mapping.append_to(outside.0, outside.1, &mut Vec::new());
        });
        assert!(copied.is_err(), "{outside:?}");
    }
    for outside in [4, 9_996, 10_000, usize::MAX] {
        let word = std::panic::catch_unwind(|| mapping.atomic_u64(outside).load(Ordering::Relaxed));
        assert!(word.is_err(), "{outside}");
    }
    for (start, end) in [(1, 4096), (0, 4097), (8192, 4096), (8192, 12288)] {
        let released = std::panic::catch_unwind(|| mapping.release_pages(start..end));
        assert!(released.is_err());
    }
    mapping.release_pages(4096..4096).unwrap();
    mapping.release_pages(4096..8192).unwrap();
    assert!(format!("{mapping:?}").contains("len: 10000"));
}

/// The kernel's count of this file's pages in memory.
fn blocks(file: &OwnedFd) -> u64 {
    rustix::fs::fstat(file).unwrap().st_blocks as u64 * 512
}

#[test]
fn idle_ring_keeps_one_page_and_trim_gives_the_others_back() {
    let (segment, file) = Segment::create(KIB_4 * 16, KIB_4).unwrap();
    let (mut requests, _) = segment.into_client_ends();
    let copy = file.try_clone().unwrap();
    let server = Segment::open(copy, KIB_4 * 16, KIB_4).unwrap();
    let (mut server_requests, _) = server.into_server_ends();
    let mut turn = |len: usize| {
        assert_eq!(requests.push(&[&vec![3; len]]), Ok(true));
        assert!(!requests.publish());
        assert_eq!(server_requests.readable(), Ok(len));
        let mut bytes = vec![0; len];
        assert_eq!(server_requests.peek(0, &mut bytes), len);
        assert_eq!(bytes, vec![3; len]);
        server_requests.consume(len);
        assert!(!server_requests.release());
    };
    for _ in 0..1000 {
        turn(1000);
    }
    // The header and the request ring's first page; the response ring was never touched.
    assert_eq!(blocks(&file), 2 * 4096);
    turn(60_000);
    assert_eq!(blocks(&file), 16 * 4096);
    assert_eq!(requests.trim(), Ok(true));
    assert_eq!(blocks(&file), 2 * 4096);
    assert_eq!(requests.trim(), Ok(false));
    assert!(
        requests
            .storage()
            .control()
            .producer
            .restart
            .load(Ordering::Relaxed)
            > 0
    );
}

#[test]
fn bell_rings_and_drains() {
    let (ours, peers) = UnixStream::pair().unwrap();
    assert_eq!(
        Bell::new(&ours).wait(Some(Duration::ZERO)).unwrap(),
        Woken::TimedOut
    );
    assert!(!Bell::new(&ours).drain().unwrap());
    Bell::new(&peers).ring().unwrap();
    Bell::new(&peers).ring().unwrap();
    assert_eq!(Bell::new(&ours).wait(None).unwrap(), Woken::Rung);
    assert!(Bell::new(&ours).drain().unwrap());
    assert!(!Bell::new(&ours).drain().unwrap());
    assert_eq!(
        Bell::new(&ours)
            .wait(Some(Duration::from_micros(1)))
            .unwrap(),
        Woken::TimedOut
    );
    // A time that no clock can hold is for ever.
    Bell::new(&peers).ring().unwrap();
    assert_eq!(
        Bell::new(&ours).wait(Some(Duration::MAX)).unwrap(),
        Woken::Rung
    );
}

#[test]
fn full_bell_is_a_rung_bell() {
    let (ours, peers) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    while (&ours).write(&[0; 4096]).is_ok() {}
    let full = (&ours).write(&[0]).unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    ours.set_nonblocking(false).unwrap();
    // Would block for ever otherwise: nobody drains.
    Bell::new(&ours).ring().unwrap();
    assert!(Bell::new(&peers).drain().unwrap());
}

#[test]
fn bell_tells_of_the_peers_death() {
    let (ours, peers) = UnixStream::pair().unwrap();
    Bell::new(&peers).ring().unwrap();
    drop(peers);
    assert_eq!(Bell::new(&ours).wait(None).unwrap(), Woken::PeerGone);
    assert!(Bell::new(&ours).drain().unwrap(), "it rang before");
    assert_eq!(Bell::new(&ours).wait(None).unwrap(), Woken::PeerGone);
    assert!(matches!(Bell::new(&ours).drain(), Err(BellError::PeerGone)));
    assert!(matches!(Bell::new(&ours).ring(), Err(BellError::PeerGone)));
    // Unread bytes at the peer's death make a reset of it.
    let (ours, peers) = UnixStream::pair().unwrap();
    Bell::new(&ours).ring().unwrap();
    drop(peers);
    assert!(matches!(Bell::new(&ours).drain(), Err(BellError::PeerGone)));
}

#[test]
fn bell_on_something_else_fails_with_the_call() {
    let file = File::open("/dev/null").unwrap();
    let error = Bell::new(&file).ring().unwrap_err();
    assert!(
        matches!(error, BellError::System { call: "send", .. }),
        "{error}"
    );
    let error = Bell::new(&file).drain().unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("recv on the bell's socket failed: "),
        "{error}"
    );
}

#[test]
fn descriptor_passes_with_bytes() {
    let (ours, peers) = UnixStream::pair().unwrap();
    let (segment, file) = segment();
    assert_eq!(
        send_with_fd(&ours, b"hello", Some(file.as_fd())).unwrap(),
        5
    );
    drop(file);
    let mut bytes = [0; 16];
    let (n, received) = recv_with_fd(&peers, &mut bytes).unwrap();
    assert_eq!(&bytes[..n], b"hello");
    let received = received.unwrap();
    assert!(
        rustix::io::fcntl_getfd(&received)
            .unwrap()
            .contains(rustix::io::FdFlags::CLOEXEC)
    );
    let inode = rustix::fs::fstat(&received).unwrap().st_ino;
    let (mut requests, mut responses) = open(received).unwrap().into_client_ends();
    // One mapping, no descriptor at rest.
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let found = std::fs::metadata(entry.unwrap().path());
        assert!(found.is_err() || found.unwrap().ino() != inode);
    }
    let (mut server_requests, _server_responses) = segment.into_server_ends();
    assert_eq!(responses.wait_for_data(), Ok(true));
    assert_eq!(requests.push(&[b"to the server"]), Ok(true));
    let _ = requests.publish();
    assert_eq!(server_requests.readable(), Ok(13));

    assert_eq!(send_with_fd(&ours, b"alone", None).unwrap(), 5);
    let (n, none) = recv_with_fd(&peers, &mut bytes).unwrap();
    assert_eq!((&bytes[..n], none.is_none()), (&b"alone"[..], true));
    drop(ours);
    let (n, none) = recv_with_fd(&peers, &mut bytes).unwrap();
    assert_eq!((n, none.is_none()), (0, true));
    let error = send_with_fd(&peers, b"late", None).unwrap_err();
    assert!(
        matches!(
            error,
            FdError::System {
                call: "sendmsg",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn too_many_descriptors_are_refused_and_closed() {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    for count in [2_usize, 3, 50] {
        let (ours, peers) = UnixStream::pair().unwrap();
        // A pipe's end of file tells when all copies of its writing end are closed.
        let (mut read, write) = io::pipe().unwrap();
        let fds = vec![write.as_fd(); count];
        let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(50))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        sendmsg(
            &ours,
            &[io::IoSlice::new(b"x")],
            &mut control,
            SendFlags::empty(),
        )
        .unwrap();
        drop(write);
        let error = recv_with_fd(&peers, &mut [0; 8]).unwrap_err();
        match count {
            2 => assert!(matches!(error, FdError::TooMany)),
            // Padding may leave room for some more.
            3 => assert!(matches!(error, FdError::TooMany | FdError::Truncated)),
            _ => assert!(matches!(error, FdError::Truncated), "{error}"),
        }
        assert_eq!(read.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn as_many_descriptors_pass_as_the_kernel_takes() {
    let (ours, peers) = UnixStream::pair().unwrap();
    let file = File::open("/dev/null").unwrap();
    let inode = file.metadata().unwrap().ino();
    for count in [0, 1, 2, MAX_FDS] {
        let fds = vec![file.as_fd(); count];
        assert_eq!(send_with_fds(&ours, b"many", &fds).unwrap(), 4);
        let mut bytes = [0; 16];
        let (n, received) = recv_with_fds(&peers, &mut bytes).unwrap();
        assert_eq!((&bytes[..n], received.len()), (&b"many"[..], count));
        for fd in received {
            assert_eq!(rustix::fs::fstat(&fd).unwrap().st_ino, inode);
            let flags = rustix::io::fcntl_getfd(&fd).unwrap();
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        }
    }
    drop(ours);
    let (n, none) = recv_with_fds(&peers, &mut [0; 8]).unwrap();
    assert_eq!((n, none.len()), (0, 0));
    assert!(send_with_fds(&peers, b"late", &[]).is_err());
}

#[test]
fn only_what_was_inherited_is_taken() {
    let file = File::open("/dev/null").unwrap();
    let number = file.as_raw_fd();
    assert!(take_inherited(number).is_err(), "it is this program's own");
    for none in [-1, 0, 1, 2, 1 << 20] {
        assert!(take_inherited(none).is_err(), "{none}");
    }
    let as_inherited = Command::new("/bin/sh")
        .args([
            "-c",
            "exec 9</dev/null; exec \"$0\" --exact takes --nocapture",
        ])
        .arg(std::env::current_exe().unwrap())
        .env("TAKES", "9")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&as_inherited.stdout);
    assert!(
        as_inherited.status.success() && said.contains("taken once"),
        "{said}"
    );
}

/// What the test before this one runs in a process of its own.
#[test]
fn takes() {
    let Ok(number) = std::env::var("TAKES") else {
        return;
    };
    let number = number.parse().unwrap();
    let taken = take_inherited(number).unwrap();
    assert_eq!(taken.as_raw_fd(), number);
    assert!(take_inherited(number).is_err());
    println!("taken once");
}

#[test]
fn receiving_from_an_empty_socket_would_block() {
    let (ours, _peers) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    match recv_with_fd(&ours, &mut [0; 8]) {
        Err(FdError::System {
            call: "recvmsg",
            source,
        }) => {
            assert_eq!(source.kind(), io::ErrorKind::WouldBlock);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn credentials_are_the_kernels_word() {
    let (ours, _peers) = UnixStream::pair().unwrap();
    let found = peer_credentials(&ours).unwrap();
    assert_eq!(found.pid, std::process::id().cast_signed());
    assert_eq!(found.uid, rustix::process::geteuid().as_raw());
    assert_eq!(found.gid, rustix::process::getegid().as_raw());
    let file = File::open("/dev/null").unwrap();
    assert!(peer_credentials(&file).is_err());
    let unconnected = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    assert_eq!(
        peer_credentials(&unconnected).unwrap_err().kind(),
        io::ErrorKind::NotConnected
    );
}

// ---- Two processes: this test binary runs itself again as the other one. ----

const ROLE: &str = "LAPCE_AI_SHM_TEST_ROLE";

/// Starts this binary again to run only the test `child`, in the given role, on one end of a
/// socket pair as its standard input; returns the other end.
fn child_process(role: &str) -> (Child, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(ROLE, role)
        .stdin(OwnedFd::from(theirs))
        .stdout(io::stderr())
        .spawn()
        .unwrap();
    (child, ours)
}

/// One side's ends and bell, with blocking reads and writes that never spin.
struct Side {
    producer: Producer<MappedRing>,
    consumer: Consumer<MappedRing>,
    socket: UnixStream,
}

impl Side {
    fn ring_if(&self, wanted: bool) {
        if wanted {
            Bell::new(&self.socket).ring().unwrap();
        }
    }

    fn sleep(&self) {
        let bell = Bell::new(&self.socket);
        assert_eq!(bell.wait(None).unwrap(), Woken::Rung);
        assert!(bell.drain().unwrap());
    }

    fn write(&mut self, bytes: &[u8]) {
        while !self.producer.push(&[bytes]).unwrap() {
            if self.producer.wait_for_space(bytes.len()).unwrap() {
                self.sleep();
            }
        }
        let wanted = publish_and_release(&mut self.producer, &mut self.consumer);
        self.ring_if(wanted);
    }

    fn read(&mut self, bytes: &mut [u8]) {
        while self.consumer.readable().unwrap() < bytes.len() {
            // Room first, or both sides might wait for each other.
            let wanted = self.consumer.release();
            self.ring_if(wanted);
            if self.consumer.wait_for_data().unwrap() {
                self.sleep();
                self.consumer.awake();
            }
        }
        assert_eq!(self.consumer.peek(0, bytes), bytes.len());
        self.consumer.consume(bytes.len());
    }
}

const TURNS: usize = 500;
const CHUNKS: usize = 1000;
const CHUNK: usize = 3001;

fn message(turn: usize) -> Vec<u8> {
    (0..1 + turn * 37 % 4000)
        .map(|at| (at + turn) as u8)
        .collect()
}

fn client_end(socket: UnixStream) -> Side {
    let mut bytes = [0; 4];
    let (n, file) = recv_with_fd(&socket, &mut bytes).unwrap();
    assert_eq!(&bytes[..n], b"take");
    let (producer, consumer) = open(file.unwrap()).unwrap().into_client_ends();
    Side {
        producer,
        consumer,
        socket,
    }
}

fn server_end(socket: UnixStream) -> Side {
    let (segment, file) = segment();
    assert_eq!(
        send_with_fd(&socket, b"take", Some(file.as_fd())).unwrap(),
        4
    );
    let (consumer, producer) = segment.into_server_ends();
    Side {
        producer,
        consumer,
        socket,
    }
}

/// The other process of the tests below; does nothing in a normal run.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned().unwrap());
    match role.as_str() {
        "client" => {
            let mut side = client_end(socket);
            for turn in 0..TURNS {
                let message = message(turn);
                side.write(&(message.len() as u32).to_le_bytes());
                side.write(&message);
                let mut answer = vec![0; message.len()];
                side.read(&mut answer);
                assert_eq!(answer, message);
            }
            for chunk in 0..CHUNKS {
                side.write(&[chunk as u8; CHUNK]);
            }
            let mut done = [0; 4];
            side.read(&mut done);
            assert_eq!(&done, b"done");
        }
        "killed" => {
            let mut side = client_end(socket);
            // Pushed and not published: never seen.
            assert_eq!(side.producer.push(&[&[1; 100]]), Ok(true));
            side.write(b"last words");
            assert_eq!(side.producer.push(&[&[2; 100]]), Ok(true));
            std::process::abort();
        }
        "no descriptors" => {
            let (pair, other) = UnixStream::pair().unwrap();
            // The lowest free number, and free again at the end of the statement.
            let next = other.try_clone().unwrap().as_raw_fd();
            let limit = rustix::process::Rlimit {
                current: Some(next.cast_unsigned().into()),
                ..rustix::process::getrlimit(rustix::process::Resource::Nofile)
            };
            rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
            match Segment::create(KIB_4, KIB_4) {
                Err(ShmError::System {
                    call: "memfd_create",
                    source,
                }) => {
                    assert_eq!(source.raw_os_error(), Some(24), "EMFILE");
                }
                other => panic!("{other:?}"),
            }
            assert_eq!(send_with_fd(&pair, b"x", Some(socket.as_fd())).unwrap(), 1);
            assert!(matches!(
                recv_with_fd(&other, &mut [0]),
                Err(FdError::Truncated)
            ));
        }
        other => panic!("no role {other:?}"),
    }
}

#[test]
fn two_processes_talk_and_sleep() {
    let (mut child, socket) = child_process("client");
    let mut side = server_end(socket);
    for _ in 0..TURNS {
        let mut len = [0; 4];
        side.read(&mut len);
        let mut message = vec![0; u32::from_le_bytes(len) as usize];
        side.read(&mut message);
        side.write(&message);
    }
    for chunk in 0..CHUNKS {
        let mut bytes = [0; CHUNK];
        side.read(&mut bytes);
        assert!(bytes.iter().all(|byte| *byte == chunk as u8));
    }
    side.write(b"done");
    assert!(child.wait().unwrap().success());
    assert_eq!(Bell::new(&side.socket).wait(None).unwrap(), Woken::PeerGone);
}

#[test]
fn a_killed_peers_published_bytes_remain() {
    let (mut child, socket) = child_process("killed");
    let mut side = server_end(socket);
    // Death is seen while nothing is asked of the peer.
    loop {
        match Bell::new(&side.socket).wait(None).unwrap() {
            Woken::PeerGone => break,
            Woken::Rung => drop(Bell::new(&side.socket).drain()),
            Woken::TimedOut => unreachable!("no time was given"),
        }
    }
    assert!(!child.wait().unwrap().success());
    assert_eq!(side.consumer.readable(), Ok(110));
    let mut bytes = [0; 10];
    assert_eq!(side.consumer.peek(100, &mut bytes), 10);
    assert_eq!(&bytes, b"last words");
}

#[test]
fn exhausted_descriptors_are_told() {
    let (mut child, _socket) = child_process("no descriptors");
    assert!(child.wait().unwrap().success());
}

#[test]
fn exhausted_address_space_is_told_and_leaves_nothing() {
    match Mapping::create(1 << 62) {
        Err(ShmError::System {
            call: "mmap" | "ftruncate",
            source,
        }) => {
            assert!(source.raw_os_error().is_some());
        }
        other => panic!("{other:?}"),
    }
}
