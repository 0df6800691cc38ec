//! Holds the tables of `docs/protocol.md` against the code: same rows, same order, same bytes. The segment's tables
//! are held in `crates/transport/tests/document.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use lapce_ai_proto::ai::{
    AIRequest, AIResponse, AutocompleteRequest, CacheControl, Citation, Content, Effort,
    EmbeddingPurpose, EmbeddingsRequest, EmbeddingsResponse, FileAnalysisRequest, FinishReason,
    ImageDetail, Message, Model, ModelAlias, ModelList, ModelListError, Part, Reasoning,
    ResponseFormat, Role, StreamEvent, TokenCount, Tool, ToolCall, ToolChoice, Usage,
};
use lapce_ai_proto::{
    Attempt, CRC, ClientState, Codec, ErrorBody, ErrorCode, FIN, Fault, Features, GoAway,
    HEADER_LEN, Hello, ITEM_PREFIX_LEN, Kind, Limits, MAGIC, MAX_NAME_LEN, MORE, MessageType,
    OPEN_PREFIX_LEN, OpenPrefix, PREFIX, ServerState, VERSION, Welcome,
};
use support::document::{cells, names, number, quoted, table, text};

const PLAIN: Codec = Codec {
    crc: false,
    max_payload: 1 << 20,
};
const CHECKED: Codec = Codec { crc: true, ..PLAIN };

#[test]
fn every_table_is_held_by_a_test() {
    let held = [
        "header",
        "kinds",
        "flags",
        "hello",
        "welcome",
        "open prefix",
        "goaway",
        "types",
        "messages",
        "events",
        "status",
        "errors",
        "faults",
        // In crates/transport/tests/document.rs.
        "segment",
        "ring control",
    ];
    assert_eq!(names(), BTreeSet::from(held));
}

/// Holds a table of fields against bytes that were encoded with the given values: offsets, sizes and order. Where the
/// last size is `n` the field takes the rest.
fn assert_layout(name: &str, encoded: &[u8], fields: &[(&str, Vec<u8>)]) {
    let rows = table(name, &["offset", "size", "field", "meaning"]);
    let found: Vec<&str> = rows.iter().map(|row| row[2].as_str()).collect();
    let expected: Vec<&str> = fields.iter().map(|(field, _)| *field).collect();
    assert_eq!(found, expected, "the fields of {name}");
    let mut at = 0;
    for (row, (field, bytes)) in rows.iter().zip(fields) {
        assert_eq!(number(&row[0]), at as u64, "{name}: offset of {field}");
        if row[1] == "n" {
            assert_eq!(at + bytes.len(), encoded.len(), "{name}: {field} is last");
        } else {
            assert_eq!(
                number(&row[1]),
                bytes.len() as u64,
                "{name}: size of {field}"
            );
        }
        let end = at + bytes.len();
        assert_eq!(&encoded[at..end], bytes, "{name}: bytes of {field}");
        at = end;
    }
    assert_eq!(at, encoded.len(), "{name} is as long as its fields");
}

#[test]
fn header() {
    let payload = vec![7; 0x0_0201];
    let frame = CHECKED.encode(Kind::Open, FIN, 0x0304, 0x1112_1314_1516_1718, &payload);
    let mut unset = frame.clone();
    unset[20..24].fill(0);
    assert_layout(
        "header",
        &frame[..HEADER_LEN],
        &[
            ("magic", MAGIC.to_le_bytes().to_vec()),
            ("version", vec![VERSION]),
            ("flags", vec![Kind::Open as u8 | FIN | CRC]),
            ("type", vec![4, 3]),
            ("length", vec![1, 2, 0, 0]),
            ("id", 0x1112_1314_1516_1718_u64.to_le_bytes().to_vec()),
            ("crc", castagnoli(&unset).to_le_bytes().to_vec()),
        ],
    );
    let rows = table("header", &["offset", "size", "field", "meaning"]);
    assert_eq!(number(&rows[0][3]), u64::from(MAGIC));
    assert_eq!(number(&rows[1][3]), u64::from(VERSION));
    let plain = PLAIN.encode(Kind::Open, FIN, 1, 1, b"x");
    assert_eq!(plain[20..24], [0; 4], "no CRC: the field is 0");
}

/// CRC-32C bit by bit, from the polynomial that the document names.
fn castagnoli(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 };
        }
    }
    !crc
}

#[test]
fn crc_is_the_one_that_the_document_names() {
    assert!(text().contains("reflected 0x82F63B78"));
    assert!(text().contains("`123456789` is `0xE3069283`"));
    assert_eq!(castagnoli(b"123456789"), 0xE306_9283);
}

fn limits() -> Limits {
    Limits {
        max_message_size: 1 << 20,
        max_frame_payload: 1 << 16,
        max_streams: 16,
        inline_window: 1 << 16,
    }
}

/// A payload of a length that the kind takes.
fn payload_of(kind: Kind) -> Vec<u8> {
    (0..=64)
        .map(|len| vec![0; len])
        .find(|payload| takes(kind, 0, 0, payload) || takes(kind, 0, 1, payload))
        .unwrap_or_else(|| panic!("{kind:?} takes no payload"))
}

fn takes(kind: Kind, flags: u8, id: u64, payload: &[u8]) -> bool {
    matches!(
        PLAIN.decode(&PLAIN.encode(kind, flags, 0, id, payload)),
        Ok(Some(_))
    )
}

#[test]
fn kinds() {
    let rows = table("kinds", &["kind", "name", "from", "id", "payload"]);
    let listed: Vec<_> = rows
        .iter()
        .map(|row| (number(&row[0]), row[1].clone()))
        .collect();
    let known: Vec<_> = Kind::ALL
        .iter()
        .map(|kind| (*kind as u64, format!("{kind:?}").to_uppercase()))
        .collect();
    assert_eq!(listed, known);
    for (row, kind) in rows.iter().zip(Kind::ALL) {
        let payload = payload_of(kind);
        let of_stream = match row[3].as_str() {
            "new stream" | "stream" => [false, true],
            "0" => [true, false],
            "stream or 0" => [true, true],
            other => panic!("{kind:?}: an id of {other}"),
        };
        for id in [0, 1] {
            assert_eq!(
                takes(kind, 0, id, &payload),
                of_stream[id as usize],
                "{kind:?} with id {id}"
            );
        }
        let id = u64::from(!of_stream[0]);
        let from_client = ["client", "both"].contains(&row[2].as_str());
        let from_server = ["server", "both"].contains(&row[2].as_str());
        assert!(from_client || from_server, "{kind:?} from {}", row[2]);
        let bytes = PLAIN.encode(kind, 0, 0, id, &payload);
        let (frame, _) = PLAIN.decode(&bytes).unwrap().unwrap();
        let refused = ServerState::new(limits(), 0).handle(&frame) == Err(Fault::BadKind);
        assert_eq!(!refused, from_client, "{kind:?} to the daemon");
        let refused = ClientState::new(limits(), 0).handle(&frame) == Err(Fault::BadKind);
        assert_eq!(!refused, from_server, "{kind:?} to the client");
        let size = match row[4].split_once(" bytes").map(|(n, _)| n.parse()) {
            Some(Ok(size)) => Some(size),
            _ if row[4].starts_with("empty") => Some(0),
            _ => None,
        };
        for len in 0..=64 {
            let right = size.is_none_or(|size: usize| size == len);
            assert_eq!(
                takes(kind, 0, id, &vec![0; len]),
                right,
                "{kind:?} with {len} bytes"
            );
        }
    }
    for unknown in [0_u8, 12, 13, 14, 15] {
        let mut bytes = PLAIN.encode(Kind::Ping, 0, 0, 0, &[0; 8]);
        bytes[5] = unknown;
        assert_eq!(PLAIN.decode(&bytes), Err(Fault::BadKind), "{unknown}");
    }
    assert_eq!(PLAIN.decode(&[0; HEADER_LEN]), Err(Fault::BadMagic));
}

#[test]
fn flags() {
    let rows = table("flags", &["bit", "name", "meaning"]);
    let listed: Vec<_> = rows
        .iter()
        .map(|row| (number(&row[0]) as u8, row[1].as_str()))
        .collect();
    assert_eq!(
        listed,
        [
            (FIN, "FIN"),
            (MORE, "MORE"),
            (PREFIX, "PREFIX"),
            (CRC, "CRC")
        ]
    );
    // What the last column says, kind by kind.
    let kinds = [
        (FIN, &[Kind::Open, Kind::End, Kind::Ping][..]),
        (MORE, &[Kind::Data]),
        (PREFIX, &[Kind::Open, Kind::Data]),
    ];
    for (flag, allowed) in kinds {
        for kind in Kind::ALL {
            let mut payload = payload_of(kind);
            if flag == PREFIX {
                payload.resize(payload.len().max(OPEN_PREFIX_LEN), 0);
            }
            let id = u64::from(!takes(kind, 0, 0, &payload_of(kind)));
            let bytes = PLAIN.encode(kind, flag, 0, id, &payload);
            let expected = if allowed.contains(&kind) {
                Ok(())
            } else {
                Err(Fault::BadFlags)
            };
            assert_eq!(
                PLAIN.decode(&bytes).map(|_| ()),
                expected,
                "{kind:?} {flag:#x}"
            );
        }
    }
    let meaning = &rows[2][2];
    assert!(meaning.contains(&format!("{OPEN_PREFIX_LEN} bytes on OPEN")));
    assert!(meaning.contains(&format!("{ITEM_PREFIX_LEN} bytes on a response's DATA")));
    let crc = CHECKED.encode(Kind::Ping, 0, 0, 0, &[0; 8]);
    assert_ne!(crc[5] & CRC, 0);
}

#[test]
fn hello() {
    let hello = Hello {
        version_min: 1,
        version_max: 3,
        earlier: 0x0405,
        features: Features {
            shared_memory: true,
            crc: false,
        },
        instance: 0x0102_0304_0506_0708_090A_0B0C_0D0E_0F10,
        response_window: 0x1122_3344,
        name: "lapce 0.4.3".to_owned(),
    };
    let encoded = hello.encode();
    assert_layout(
        "hello",
        &encoded,
        &[
            ("version_min", vec![1]),
            ("version_max", vec![3]),
            ("earlier", hello.earlier.to_le_bytes().to_vec()),
            ("features", vec![1, 0, 0, 0]),
            ("instance", hello.instance.to_le_bytes().to_vec()),
            ("response_window", 0x1122_3344_u32.to_le_bytes().to_vec()),
            ("name_length", 11_u32.to_le_bytes().to_vec()),
            ("name", b"lapce 0.4.3".to_vec()),
        ],
    );
    assert_eq!(Hello::decode(&encoded), Ok(hello.clone()));
    let rows = table("hello", &["offset", "size", "field", "meaning"]);
    assert_eq!(rows[3][3], "wanted: bit 0 shared memory, bit 1 CRC");
    let crc = Features {
        shared_memory: false,
        crc: true,
    };
    let bytes = Hello::new("x", 0, crc, 0).encode();
    assert_eq!(bytes[4..8], [2, 0, 0, 0]);
    assert_name_limit(&rows[6][3], |name| Hello::new(&name, 0, crc, 0).name.len());
    let mut long = Hello::new("", 0, crc, 0).encode();
    long[28] = 65;
    long.extend_from_slice(&[b'x'; 65]);
    assert_eq!(Hello::decode(&long), Err(Fault::BadPayload));
}

fn assert_name_limit(cell: &str, len_of: impl Fn(String) -> usize) {
    let limit = number(cell.strip_prefix("at most ").unwrap()) as usize;
    assert_eq!(limit, MAX_NAME_LEN);
    assert_eq!(len_of("x".repeat(limit + 1)), limit);
}

#[test]
fn welcome() {
    let welcome = Welcome {
        version: VERSION,
        features: Features {
            shared_memory: true,
            crc: true,
        },
        instance: 0x0102_0304_0506_0708_090A_0B0C_0D0E_0F10,
        connection: 0x1112_1314_1516_1718,
        limits: Limits {
            max_message_size: 0x2122_2324_2526_2728,
            max_frame_payload: 0x0012_3334,
            max_streams: 0x4142_4344,
            inline_window: 0x5152_5354,
        },
        request_capacity: 0x6162_6364,
        response_capacity: 0x7172_7374,
        name: "lapce-ai 0.1.0".to_owned(),
    };
    let encoded = welcome.encode();
    assert_layout(
        "welcome",
        &encoded,
        &[
            ("version", vec![1]),
            ("reserved", vec![0; 3]),
            ("features", vec![3, 0, 0, 0]),
            ("instance", welcome.instance.to_le_bytes().to_vec()),
            ("connection", welcome.connection.to_le_bytes().to_vec()),
            (
                "max_message_size",
                0x2122_2324_2526_2728_u64.to_le_bytes().to_vec(),
            ),
            ("max_frame_payload", 0x0012_3334_u32.to_le_bytes().to_vec()),
            ("max_streams", 0x4142_4344_u32.to_le_bytes().to_vec()),
            ("inline_window", 0x5152_5354_u32.to_le_bytes().to_vec()),
            ("request_capacity", 0x6162_6364_u32.to_le_bytes().to_vec()),
            ("response_capacity", 0x7172_7374_u32.to_le_bytes().to_vec()),
            ("name_length", 14_u32.to_le_bytes().to_vec()),
            ("name", b"lapce-ai 0.1.0".to_vec()),
        ],
    );
    assert_eq!(Welcome::decode(&encoded), Ok(welcome.clone()));
    let rows = table("welcome", &["offset", "size", "field", "meaning"]);
    assert_name_limit(&rows[11][3], |name| {
        let long = Welcome {
            name,
            ..welcome.clone()
        };
        Welcome::decode(&long.encode()).unwrap().name.len()
    });
}

#[test]
fn open_prefix() {
    let prefix = OpenPrefix {
        total_length: 0x0102_0304_0506_0708,
        deadline_ms: 0x1112_1314,
        class: lapce_ai_proto::Class::Bulk,
        repeatable: true,
        response_window: 0x2122_2324,
        received: 0x4142_4344,
        sequence: 0x0012_3334_3536_3738,
    };
    let encoded = prefix.encode();
    assert_eq!(encoded.len(), OPEN_PREFIX_LEN);
    assert_layout(
        "open prefix",
        &encoded,
        &[
            ("total_length", prefix.total_length.to_le_bytes().to_vec()),
            ("deadline_ms", prefix.deadline_ms.to_le_bytes().to_vec()),
            ("class", vec![3]),
            ("options", vec![1]),
            ("reserved", vec![0; 2]),
            (
                "response_window",
                prefix.response_window.to_le_bytes().to_vec(),
            ),
            ("received", prefix.received.to_le_bytes().to_vec()),
            ("sequence", prefix.sequence.to_le_bytes().to_vec()),
        ],
    );
    let split = OpenPrefix::split(&encoded).unwrap();
    assert_eq!(split, (prefix, &[][..]));
    // 0 by type, 1 interactive, 2 normal, 3 bulk
    let rows = table("open prefix", &["offset", "size", "field", "meaning"]);
    let classes = ["ByType", "Interactive", "Normal", "Bulk"];
    for (cell, class) in rows[2][3].split(", ").zip(classes) {
        let (value, name) = cell.split_once(' ').unwrap();
        let mut bytes = encoded;
        bytes[12] = number(value) as u8;
        let read = OpenPrefix::split(&bytes).unwrap().0.class;
        assert_eq!(format!("{read:?}"), class);
        assert_eq!(name.replace(' ', ""), class.to_lowercase());
    }
    assert_eq!(rows[2][3].split(", ").count(), classes.len());
    let mut bytes = encoded;
    bytes[12] = 4;
    assert_eq!(OpenPrefix::split(&bytes), Err(Fault::BadPayload));
    assert_eq!(
        rows[3][3],
        "bit 0: repeatable, running it twice does no harm"
    );
}

#[test]
fn goaway() {
    let goaway = GoAway {
        last_id: 0x0102_0304_0506_0708,
        drain_ms: 0x1112_1314,
        code: ErrorCode::ServerRestarting,
    };
    let encoded = goaway.encode();
    assert_layout(
        "goaway",
        &encoded,
        &[
            ("last_id", goaway.last_id.to_le_bytes().to_vec()),
            ("drain_ms", goaway.drain_ms.to_le_bytes().to_vec()),
            (
                "code",
                ErrorCode::ServerRestarting.number().to_le_bytes().to_vec(),
            ),
            ("reserved", vec![0; 2]),
        ],
    );
    assert_eq!(GoAway::decode(&encoded), Ok(goaway));
}

#[test]
fn types() {
    let rows = table("types", &["type", "name", "request", "response"]);
    let listed: Vec<_> = rows
        .iter()
        .map(|row| (number(&row[0]), row[1].as_str()))
        .collect();
    let known: Vec<_> = MessageType::NAMED
        .iter()
        .map(|(ty, name)| (u64::from(ty.0), *name))
        .collect();
    assert_eq!(listed, known);
    for (ty, name) in MessageType::NAMED {
        assert_eq!(ty.to_string(), name);
        let bytes = PLAIN.encode(Kind::Open, FIN, ty.0, 1, b"");
        assert_eq!(bytes[6..8], ty.0.to_le_bytes(), "{name}");
    }
    // Every constant is in the list.
    let constants = include_str!("../src/message_type.rs")
        .lines()
        .filter(|line| line.contains(": Self = Self(0x"))
        .count();
    assert_eq!(constants, rows.len() + 1, "and FIRST_FREE");
    assert!(text().contains("Types from 0x8000 up are free"));
    assert_eq!(MessageType::FIRST_FREE.0, 0x8000);
    for row in &rows {
        for message in quoted(&row[2]).into_iter().chain(quoted(&row[3])) {
            let defined = text().lines().any(|line| {
                cells(line)
                    .first()
                    .is_some_and(|cell| *cell == format!("`{message}`"))
            });
            assert!(
                message.starts_with(['{', '"']) || message == "Status" || defined,
                "{message} is not described"
            );
        }
    }
}

/// `name: type` and `name?: type` of a cell, as (name, optional).
fn fields(cell: &str) -> BTreeMap<String, bool> {
    quoted(cell)
        .into_iter()
        .filter_map(|field| field.split_once(": "))
        .map(|(name, _)| match name.strip_suffix('?') {
            Some(name) => (name.to_owned(), true),
            None => (name.to_owned(), false),
        })
        .collect()
}

fn keys(event: &StreamEvent) -> BTreeSet<String> {
    let json = serde_json::to_string(event).unwrap();
    assert!(json.starts_with("{\"type\":"), "type is first: {json}");
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    let mut keys: BTreeSet<String> = value.as_object().unwrap().keys().cloned().collect();
    keys.remove("type");
    keys
}

/// Each event without and with its optional fields. A new variant does not compile here until it is in the list.
fn samples() -> Vec<(StreamEvent, StreamEvent)> {
    let text = || "x".to_owned();
    let some = || Some(text());
    let usage = Usage {
        input_tokens: 1,
        output_tokens: 1,
        ..Usage::default()
    };
    let finish = |attempts, cost_nano_usd, cached, warnings| StreamEvent::Finish {
        reason: FinishReason::Stop,
        attempts,
        cost_nano_usd,
        cached,
        warnings,
    };
    let samples = vec![
        (
            StreamEvent::Start {
                provider: text(),
                model: text(),
                id: None,
            },
            StreamEvent::Start {
                provider: text(),
                model: text(),
                id: some(),
            },
        ),
        (
            StreamEvent::Text { text: text() },
            StreamEvent::Text { text: text() },
        ),
        (
            StreamEvent::Reasoning {
                text: text(),
                signature: None,
            },
            StreamEvent::Reasoning {
                text: text(),
                signature: some(),
            },
        ),
        (
            StreamEvent::RedactedReasoning { data: text() },
            StreamEvent::RedactedReasoning { data: text() },
        ),
        (
            StreamEvent::ToolCall {
                index: 0,
                id: None,
                name: None,
                arguments: None,
                signature: None,
            },
            StreamEvent::ToolCall {
                index: 0,
                id: some(),
                name: some(),
                arguments: some(),
                signature: some(),
            },
        ),
        (
            StreamEvent::Citation(Citation::default()),
            StreamEvent::Citation(Citation {
                url: some(),
                title: some(),
                quote: some(),
            }),
        ),
        (
            StreamEvent::Continued {
                provider: text(),
                model: text(),
                id: None,
                text_bytes: 1,
            },
            StreamEvent::Continued {
                provider: text(),
                model: text(),
                id: some(),
                text_bytes: 1,
            },
        ),
        (
            StreamEvent::Usage(usage),
            StreamEvent::Usage(Usage {
                cached_input_tokens: Some(1),
                cache_write_tokens: Some(1),
                reasoning_tokens: Some(1),
                ..usage
            }),
        ),
        (
            finish(Vec::new(), None, false, Vec::new()),
            finish(vec![Attempt::default()], Some(1), true, vec![text()]),
        ),
    ];
    for (event, _) in &samples {
        match event {
            StreamEvent::Start { .. }
            | StreamEvent::Text { .. }
            | StreamEvent::Reasoning { .. }
            | StreamEvent::RedactedReasoning { .. }
            | StreamEvent::ToolCall { .. }
            | StreamEvent::Citation(_)
            | StreamEvent::Continued { .. }
            | StreamEvent::Usage(_)
            | StreamEvent::Finish { .. }
            | StreamEvent::Unknown => {}
        }
    }
    samples
}

#[test]
fn events() {
    let rows = table("events", &["type", "further fields"]);
    let samples = samples();
    assert_eq!(rows.len(), samples.len());
    for (row, (least, most)) in rows.iter().zip(&samples) {
        let name = row[0].trim_matches('`');
        let json = serde_json::to_value(least).unwrap();
        assert_eq!(json["type"], name);
        let described = if row[1].starts_with("as `Usage`") {
            let usage = text()
                .lines()
                .find(|line| line.starts_with("| `Usage` |"))
                .unwrap();
            fields(&cells(usage)[1])
        } else {
            fields(&row[1])
        };
        let required = described.iter().filter(|(_, optional)| !**optional);
        let required: BTreeSet<_> = required.map(|(name, _)| name.clone()).collect();
        assert_eq!(keys(least), required, "{name}: required fields");
        assert_eq!(
            keys(most),
            described.into_keys().collect(),
            "{name}: all fields"
        );
    }
    let reasons = [
        FinishReason::Stop,
        FinishReason::Length,
        FinishReason::ToolCalls,
        FinishReason::ContentFilter,
        FinishReason::Refusal,
        FinishReason::Other,
    ];
    let listed: Vec<&str> = rows[8][1].split('"').skip(1).step_by(2).collect();
    let known: Vec<_> = reasons
        .iter()
        .map(|reason| serde_json::to_value(reason).unwrap())
        .collect();
    assert_eq!(listed, known);
    let unknown: StreamEvent = serde_json::from_str(r#"{"type":"later","x":1}"#).unwrap();
    assert_eq!(unknown, StreamEvent::Unknown);
}

/// Each message without and with its optional fields.
fn messages() -> Vec<(&'static str, serde_json::Value, serde_json::Value)> {
    use serde_json::{Value, to_value};
    let text = || "x".to_owned();
    let some = || Some(text());
    let image = |all: bool| Part::Image {
        media_type: all.then(text),
        data: all.then(text),
        url: all.then(text),
        detail: all.then_some(ImageDetail::High),
        cache_control: all.then_some(true),
    };
    let call = |signature| ToolCall {
        id: text(),
        name: text(),
        parameters: Value::Null,
        signature,
    };
    let tool = |all: bool| Tool {
        name: text(),
        description: all.then(text),
        parameters: Value::Null,
        strict: all.then_some(true),
    };
    let pair = |name, least: serde_json::Result<Value>, most: serde_json::Result<Value>| {
        (name, least.unwrap(), most.unwrap())
    };
    let model = || Model {
        max_output_tokens: Some(1),
        context_window: Some(1),
        display_name: some(),
        owner: some(),
        ..Model::default()
    };
    let error = || ModelListError {
        provider: text(),
        message: text(),
    };
    let alias = || ModelAlias {
        name: text(),
        model: text(),
    };
    let schema = ResponseFormat::JsonSchema {
        name: text(),
        schema: Value::Null,
        strict: Some(true),
    };
    let reasoning = Reasoning {
        effort: Some(Effort::ExtraHigh),
        budget_tokens: Some(1),
    };
    let cache = CacheControl {
        system_prompt: Some(true),
        tools: Some(true),
    };
    let request = AIRequest {
        temperature: Some(1.0),
        max_tokens: Some(1),
        tools: Some(vec![tool(true)]),
        system_prompt: some(),
        stream: Some(true),
        top_p: Some(1.0),
        stop: Some(vec![text()]),
        tool_choice: Some(ToolChoice::Auto),
        response_format: Some(schema.clone()),
        reasoning: Some(reasoning),
        seed: Some(1),
        metadata: Some(BTreeMap::new()),
        parallel_tool_calls: Some(true),
        cache_control: Some(cache),
        user: some(),
        cache: Some(true),
        ..AIRequest::new("m", vec![])
    };
    let message = Message {
        role: Role::Tool,
        content: Content::Text(text()),
        tool_calls: Some(vec![call(None)]),
        tool_call_id: some(),
    };
    let code = AutocompleteRequest {
        path: some(),
        language: some(),
        model: some(),
        max_tokens: Some(1),
        temperature: Some(1.0),
        stop: Some(vec![]),
        stream: Some(true),
        ..AutocompleteRequest::default()
    };
    let file = FileAnalysisRequest {
        language: some(),
        model: some(),
        max_tokens: Some(1),
        stream: Some(true),
        ..FileAnalysisRequest::default()
    };
    let vectors = EmbeddingsRequest {
        dimensions: Some(1),
        purpose: Some(EmbeddingPurpose::Query),
        ..EmbeddingsRequest::default()
    };
    let usage = Usage {
        cached_input_tokens: Some(1),
        cache_write_tokens: Some(1),
        reasoning_tokens: Some(1),
        ..Usage::default()
    };
    let response = AIResponse {
        id: some(),
        reasoning: some(),
        thoughts: Some(vec![]),
        tool_calls: Some(vec![]),
        citations: Some(vec![]),
        usage: Some(usage),
        attempts: vec![Attempt::default()],
        cost_nano_usd: Some(1),
        cached: true,
        warnings: vec![text()],
        ..AIResponse::default()
    };
    let attempt = Attempt {
        key: Some(1),
        purpose: some(),
        why: some(),
        usage: Some(usage),
        ..Attempt::default()
    };
    let list = ModelList {
        models: vec![model()],
        errors: vec![error()],
        aliases: vec![alias()],
    };
    vec![
        pair(
            "AIRequest",
            to_value(AIRequest::default()),
            to_value(request),
        ),
        pair("Message", to_value(Message::user("x")), to_value(message)),
        pair(
            "Part",
            to_value(Part::Text {
                text: text(),
                cache_control: None,
            }),
            to_value(Part::Text {
                text: text(),
                cache_control: Some(true),
            }),
        ),
        pair("Part", to_value(image(false)), to_value(image(true))),
        pair(
            "Part",
            to_value(Part::Reasoning {
                text: text(),
                signature: None,
            }),
            to_value(Part::Reasoning {
                text: text(),
                signature: some(),
            }),
        ),
        pair(
            "Part",
            to_value(Part::RedactedReasoning { data: text() }),
            to_value(Part::RedactedReasoning { data: text() }),
        ),
        pair("ToolCall", to_value(call(None)), to_value(call(some()))),
        pair("Tool", to_value(tool(false)), to_value(tool(true))),
        pair(
            "ResponseFormat",
            to_value(ResponseFormat::JsonObject),
            to_value(schema),
        ),
        pair(
            "Reasoning",
            to_value(Reasoning::default()),
            to_value(reasoning),
        ),
        pair(
            "CacheControl",
            to_value(CacheControl::default()),
            to_value(cache),
        ),
        pair(
            "AutocompleteRequest",
            to_value(AutocompleteRequest::default()),
            to_value(code),
        ),
        pair(
            "FileAnalysisRequest",
            to_value(FileAnalysisRequest::default()),
            to_value(file),
        ),
        pair(
            "EmbeddingsRequest",
            to_value(EmbeddingsRequest::default()),
            to_value(vectors),
        ),
        pair(
            "EmbeddingsResponse",
            to_value(EmbeddingsResponse::default()),
            {
                to_value(EmbeddingsResponse {
                    usage: Some(usage),
                    cost_nano_usd: Some(1),
                    warnings: vec![String::new()],
                    ..EmbeddingsResponse::default()
                })
            },
        ),
        pair("ModelList", to_value(ModelList::default()), to_value(list)),
        pair("Model", to_value(Model::default()), to_value(model())),
        pair("ModelListError", to_value(error()), to_value(error())),
        pair("ModelAlias", to_value(alias()), to_value(alias())),
        {
            let count = TokenCount {
                tokens: 1,
                exact: true,
            };
            pair("TokenCount", to_value(count), to_value(count))
        },
        pair(
            "AIResponse",
            to_value(AIResponse::default()),
            to_value(response),
        ),
        pair("Usage", to_value(Usage::default()), to_value(usage)),
        pair("Citation", to_value(Citation::default()), {
            to_value(Citation {
                url: some(),
                title: some(),
                quote: some(),
            })
        }),
        pair("Attempt", to_value(Attempt::default()), to_value(attempt)),
    ]
}

#[test]
fn every_field_of_a_message_stands_in_its_table() {
    let rows = table("messages", &["message", "fields"]);
    let messages = messages();
    assert_eq!(rows.len(), messages.len());
    for (row, (name, least, most)) in rows.iter().zip(messages) {
        assert_eq!(quoted(&row[0]), [name]);
        let described = fields(&row[1]);
        let keys = |value: &serde_json::Value| -> BTreeSet<String> {
            value.as_object().unwrap().keys().cloned().collect()
        };
        let required = described.iter().filter(|(_, optional)| !**optional);
        let required: BTreeSet<_> = required.map(|(name, _)| name.clone()).collect();
        assert_eq!(keys(&least), required, "{}: required fields", row[0]);
        let all: BTreeSet<_> = described.into_keys().collect();
        assert_eq!(keys(&most), all, "{}: all fields", row[0]);
    }
}

#[test]
fn errors() {
    let rows = table("errors", &["code", "name", "whose", "retry", "what to do"]);
    let listed: Vec<Vec<&str>> = rows
        .iter()
        .map(|row| row.iter().map(String::as_str).collect())
        .collect();
    let numbers: Vec<String> = ErrorCode::ALL
        .iter()
        .map(|code| code.number().to_string())
        .collect();
    let known: Vec<Vec<&str>> = ErrorCode::ALL
        .iter()
        .zip(&numbers)
        .map(|(code, number)| {
            vec![
                number.as_str(),
                code.name(),
                code.whose().name(),
                if code.may_retry() { "yes" } else { "no" },
                code.advice(),
            ]
        })
        .collect();
    assert_eq!(listed, known);
    for code in ErrorCode::ALL {
        let body = ErrorBody::new(*code, "why");
        let control = lapce_ai_proto::Control::Error(9, Box::new(body.clone()));
        let mut payload = Vec::new();
        let (kind, flags, ty, id) = control.parts(&mut payload);
        let bytes = PLAIN.encode(kind, flags, ty, id, &payload);
        assert_eq!(bytes[6..8], code.number().to_le_bytes());
        let json: serde_json::Value = serde_json::from_slice(&payload).unwrap();
        assert_eq!(json["code"], code.name());
        assert_eq!(ErrorBody::read(code.number(), &payload), body);
        assert_eq!(ErrorCode::from_number(code.number()), *code);
    }
    assert_eq!(ErrorCode::from_number(0x7FFF), ErrorCode::Internal);
}

#[test]
fn the_error_payload_has_the_fields_that_the_document_names() {
    let (_, rest) = text().split_once("and as payload\n`{").unwrap();
    let (described, _) = rest.split_once("}`").unwrap();
    let described: BTreeSet<_> = described
        .split(", ")
        .map(|field| {
            field
                .split_once(':')
                .unwrap()
                .0
                .trim_matches(['"', '?'])
                .to_owned()
        })
        .collect();
    let body = ErrorBody {
        retry_after_ms: Some(1),
        provider: Some("p".into()),
        status: Some(500),
        provider_code: Some("c".into()),
        request_id: Some("r".into()),
        fault: Some("f".into()),
        attempts: Box::new([Attempt::default()]),
        ..ErrorBody::new(ErrorCode::Internal, "m")
    };
    let mut payload = Vec::new();
    body.write(&mut payload);
    let json: serde_json::Value = serde_json::from_slice(&payload).unwrap();
    let written: BTreeSet<_> = json.as_object().unwrap().keys().cloned().collect();
    assert_eq!(written, described);
}

#[test]
fn faults() {
    let rows = table("faults", &["fault", "meaning"]);
    let listed: Vec<_> = rows
        .iter()
        .map(|row| (row[0].as_str(), row[1].as_str()))
        .collect();
    let known: Vec<_> = Fault::ALL
        .iter()
        .map(|fault| (fault.name(), fault.meaning()))
        .collect();
    assert_eq!(listed, known);
    let source = include_str!("../src/fault.rs");
    let (_, variants) = source.split_once("pub enum Fault {").unwrap();
    let (variants, _) = variants.split_once("\n}").unwrap();
    let variants = variants
        .lines()
        .filter(|line| line.ends_with(',') && !line.trim_start().starts_with("//"))
        .count();
    assert_eq!(variants, Fault::ALL.len(), "every variant is in ALL");
    for fault in Fault::ALL {
        let body = ErrorBody::from_fault(fault);
        assert_eq!(body.code, ErrorCode::ProtocolError);
        assert_eq!(body.fault.as_deref(), Some(fault.name()));
    }
}

/// A field's mark of an optional one and its type, as the tables write them.
fn described(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Number(_) => "integer",
        serde_json::Value::Bool(_) => "boolean",
        serde_json::Value::String(_) => "string",
        serde_json::Value::Array(_) => "[]",
        serde_json::Value::Object(_) => "{}",
        serde_json::Value::Null => "?",
    }
    .to_owned()
}

#[test]
fn status() {
    use lapce_ai_proto::status::{
        Breaker, BudgetStatus, CacheStatus, ConnectionStatus, Counters, Health, LedgerStatus,
        LimitStatus, PoolStatus, Probe, ProviderStatus, ReactorStatus, Spending, Status,
        TierStatus,
    };
    use serde_json::to_value;
    let text = || Some(String::new());
    // What is there always, and what is there with every option set.
    let bodies = [
        ("Status", to_value(Status::default()), {
            to_value(Status {
                config: text(),
                stops_when_idle_secs: Some(1),
                default_model: text(),
                cache: Some(CacheStatus::default()),
                ledger: Some(LedgerStatus::default()),
                ..Status::default()
            })
        }),
        (
            "Connection",
            to_value(ConnectionStatus::default()),
            to_value(ConnectionStatus::default()),
        ),
        (
            "Reactor",
            to_value(ReactorStatus::default()),
            to_value(ReactorStatus::default()),
        ),
        ("Provider", to_value(ProviderStatus::default()), {
            to_value(ProviderStatus {
                base_url: text(),
                default_model: text(),
                health: Some(Health::default()),
                spend: Some(Spending::default()),
                ..ProviderStatus::default()
            })
        }),
        ("Health", to_value(Health::default()), {
            to_value(Health {
                first_token_p50_ms: Some(1),
                first_token_p95_ms: Some(1),
                first_token_p99_ms: Some(1),
                rest_ms: Some(1),
                probe: Some(Probe::default()),
                ..Health::default()
            })
        }),
        ("Limit", to_value(LimitStatus::default()), {
            to_value(LimitStatus {
                model: text(),
                key: Some(1),
                most: Some(1),
                reset_ms: Some(1),
                ..LimitStatus::default()
            })
        }),
        ("Breaker", to_value(Breaker::default()), {
            to_value(Breaker {
                model: text(),
                open_ms: Some(1),
                ..Breaker::default()
            })
        }),
        ("Probe", to_value(Probe::default()), {
            to_value(Probe {
                why: text(),
                ..Probe::default()
            })
        }),
        (
            "Spending",
            to_value(Spending::default()),
            to_value(Spending::default()),
        ),
        ("Budget", to_value(BudgetStatus::default()), {
            to_value(BudgetStatus {
                provider: text(),
                client: Some(1),
                soft_nano_usd: Some(1),
                hard_nano_usd: Some(1),
                ..BudgetStatus::default()
            })
        }),
        (
            "Cache",
            to_value(CacheStatus::default()),
            to_value(CacheStatus::default()),
        ),
        ("Ledger", to_value(LedgerStatus::default()), {
            to_value(LedgerStatus {
                trouble: text(),
                ..LedgerStatus::default()
            })
        }),
        (
            "Counters",
            to_value(Counters::default()),
            to_value(Counters::default()),
        ),
        (
            "Pool",
            to_value(PoolStatus::default()),
            to_value(PoolStatus::default()),
        ),
        ("Tier", to_value(TierStatus::default()), {
            to_value(TierStatus {
                size: Some(1),
                ..TierStatus::default()
            })
        }),
    ];
    let rows = table("status", &["of", "fields"]);
    assert_eq!(rows.len(), bodies.len());
    for (row, (name, always, with_options)) in rows.iter().zip(bodies) {
        assert_eq!(quoted(&row[0]), [name]);
        let (always, all) = (always.unwrap(), with_options.unwrap());
        let listed: BTreeSet<(String, String)> = quoted(&row[1])
            .into_iter()
            .map(|field| {
                let (name, of) = field.split_once(": ").unwrap();
                let of = match of {
                    "Counters" | "Pool" | "Health" | "Probe" | "Spending" | "Cache" | "Ledger" => {
                        "{}"
                    }
                    _ if of.ends_with("[]") => "[]",
                    _ => of,
                };
                (name.to_owned(), of.to_owned())
            })
            .collect();
        let known: BTreeSet<(String, String)> = all
            .as_object()
            .unwrap()
            .iter()
            .map(|(field, value)| {
                let mark = if always.get(field).is_some() { "" } else { "?" };
                (format!("{field}{mark}"), described(value))
            })
            .collect();
        assert_eq!(listed, known, "the fields of {name}");
    }
}
