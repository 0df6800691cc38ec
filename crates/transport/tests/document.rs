//! Holds the tables of `docs/protocol.md` about the segment against the code that makes one: same rows, same order,
//! and each word found where the page says.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

#[path = "../../proto/tests/support/document.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "the protocol's tests use the rest"
)]
mod document;

use document::{number, table};
use lapce_ai_shm::{Mapping, Segment, layout};

const REQUESTS: u32 = 8 << 10;
const RESPONSES: u32 = 16 << 10;

fn bytes(mapping: &Mapping, offset: usize, len: usize) -> Vec<u8> {
    let mut found = vec![0; len];
    mapping.read(offset, &mut found);
    found
}

#[test]
fn segment() {
    let (segment, _file) = Segment::create(REQUESTS, RESPONSES).unwrap();
    let mapping = segment.mapping();
    let rows = table("segment", &["offset", "size", "field", "meaning"]);
    let len = 4096 + u64::from(REQUESTS) + u64::from(RESPONSES);
    assert_eq!(mapping.len() as u64, len);
    // What is in each field; nothing for the control lines, which a ring's table describes.
    let expected: [(&str, usize, Vec<u8>); 8] = [
        ("magic", layout::MAGIC_OFFSET, b"LAPCESHM".to_vec()),
        (
            "layout_version",
            layout::VERSION_OFFSET,
            1_u32.to_le_bytes().to_vec(),
        ),
        (
            "header_length",
            layout::HEADER_LEN_OFFSET,
            4096_u32.to_le_bytes().to_vec(),
        ),
        (
            "segment_length",
            layout::SEGMENT_LEN_OFFSET,
            len.to_le_bytes().to_vec(),
        ),
        (
            "request_capacity",
            layout::REQUEST_CAPACITY_OFFSET,
            REQUESTS.to_le_bytes().to_vec(),
        ),
        (
            "response_capacity",
            layout::RESPONSE_CAPACITY_OFFSET,
            RESPONSES.to_le_bytes().to_vec(),
        ),
        (
            "request_control",
            layout::REQUEST_CONTROL_OFFSET,
            vec![0; 512],
        ),
        (
            "response_control",
            layout::RESPONSE_CONTROL_OFFSET,
            vec![0; 512],
        ),
    ];
    assert_eq!(rows.len(), expected.len());
    let mut end = 0;
    for (row, (field, offset, content)) in rows.iter().zip(&expected) {
        assert_eq!(row[2], *field);
        assert_eq!(number(&row[0]), *offset as u64, "offset of {field}");
        assert_eq!(number(&row[1]), content.len() as u64, "size of {field}");
        assert_eq!(&bytes(mapping, *offset, content.len()), content, "{field}");
        // Between the fields there is nothing.
        assert_eq!(
            bytes(mapping, end, offset - end),
            vec![0; offset - end],
            "before {field}"
        );
        end = offset + content.len();
    }
    assert_eq!(bytes(mapping, end, 4096 - end), vec![0; 4096 - end]);
    assert_eq!(rows[0][3], "the bytes `LAPCESHM`");
    assert!(rows[1][3].starts_with(&format!("`{}`", layout::LAYOUT_VERSION)));
    assert_eq!(number(&rows[2][3]), layout::HEADER_LEN as u64);
    assert_eq!(rows[6][3], "client to daemon");
    assert_eq!(rows[7][3], "daemon to client");
    let page = document::text();
    assert!(page.contains("from 4 KiB to 1 GiB"));
    assert_eq!(
        (layout::MIN_CAPACITY, layout::MAX_CAPACITY),
        (4096, 1 << 30)
    );
    assert!(page.contains("The request ring's bytes start at\n4096"));
    assert_eq!(layout::REQUEST_BYTES_OFFSET, 4096);
}

/// Which of a ring's words changed, as (offset, value), wherever in its control lines that was.
fn changes(before: &[u8], after: &[u8]) -> Vec<(u64, u64)> {
    let words = before.chunks(8).zip(after.chunks(8)).enumerate();
    words
        .filter(|(_, (before, after))| before != after)
        .map(|(at, (_, after))| {
            let word = u64::from_le_bytes(after.try_into().unwrap());
            (at as u64 * 8, word)
        })
        .collect()
}

#[test]
fn ring_control() {
    let rows = table(
        "ring control",
        &["offset", "size", "field", "written by", "meaning"],
    );
    let listed: Vec<_> = rows
        .iter()
        .map(|row| {
            let names: Vec<&str> = row[1..4].iter().map(String::as_str).collect();
            (number(&row[0]) as usize, names)
        })
        .collect();
    let known = [
        (layout::TAIL_OFFSET, vec!["8", "tail", "producer"]),
        (layout::RESTART_OFFSET, vec!["8", "restart", "producer"]),
        (layout::HEAD_OFFSET, vec!["8", "head", "consumer"]),
        (layout::DATA_WANTED_OFFSET, vec!["4", "data_wanted", "both"]),
        (
            layout::SPACE_WANTED_OFFSET,
            vec!["4", "space_wanted", "both"],
        ),
    ];
    assert_eq!(listed, known);
    let at = |field: &str| {
        let row = rows.iter().find(|row| row[2] == field).unwrap();
        number(&row[0])
    };
    // Both rings do what the page says, each in its own control lines.
    for response in [false, true] {
        let (server, file) = Segment::create(REQUESTS, REQUESTS).unwrap();
        let client = Segment::open(file, REQUESTS, REQUESTS).unwrap();
        let mapping = std::sync::Arc::clone(server.mapping());
        let (from_client, from_server) = (client.into_client_ends(), server.into_server_ends());
        let (control, mut producer, mut consumer) = if response {
            (
                layout::RESPONSE_CONTROL_OFFSET,
                from_server.1,
                from_client.1,
            )
        } else {
            (layout::REQUEST_CONTROL_OFFSET, from_client.0, from_server.0)
        };
        let mut seen = bytes(&mapping, control, 512);
        let mut changed = || {
            let now = bytes(&mapping, control, 512);
            let changed = changes(&seen, &now);
            seen = now;
            changed
        };
        assert!(consumer.wait_for_data().unwrap());
        assert_eq!(changed(), [(at("data_wanted"), 1)], "the consumer sleeps");
        assert!(producer.push(&[&[7; 3000]]).unwrap());
        assert_eq!(changed(), [], "not published yet");
        assert!(producer.publish(), "the consumer is to be rung");
        assert_eq!(changed(), [(at("tail"), 3000), (at("data_wanted"), 0)]);
        assert!(producer.wait_for_space(6000).unwrap());
        assert_eq!(
            changed(),
            [(at("space_wanted"), 6000)],
            "the producer waits"
        );
        assert_eq!(consumer.readable().unwrap(), 3000);
        consumer.consume(3000);
        assert!(consumer.release(), "the producer is to be rung");
        assert_eq!(changed(), [(at("head"), 3000), (at("space_wanted"), 0)]);
        // The ring is empty, and what comes next does not fit the first page.
        assert!(producer.push(&[&[8; 2000]]).unwrap());
        assert!(!producer.publish());
        let capacity = u64::from(REQUESTS);
        assert_eq!(
            changed(),
            [(at("tail"), capacity + 2000), (at("restart"), capacity)]
        );
        assert_eq!(consumer.readable().unwrap(), 2000);
        consumer.consume(2000);
        assert!(!consumer.release());
        assert_eq!(changed(), [(at("head"), capacity + 2000)]);
    }
    assert!(document::text().contains("four control lines, 128 bytes apart"));
    assert_eq!(layout::CONTROL_LINE, 128);
}
