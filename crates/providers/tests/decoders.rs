//! Every provider's decoders against answers that were cut, changed or made up: events, at most one typed error, never a
//! panic, and no more memory than the limit allows. The sound answers are those of the conformance fixtures.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

#[path = "decoders/feed.rs"]
mod feed;
#[allow(dead_code, reason = "the answers are all that is wanted here")]
#[path = "conformance/fixture.rs"]
mod fixture;
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use feed::{KINDS, Kind, LIMIT};
use lapce_ai_providers::{Feature, PROFILES};
use proptest::prelude::*;
use proptest::sample::Index;

/// The most memory that a decoder may take beyond its limit: what it copies while it reads, and the buffers of its events.
const ROOM: u64 = 6 * LIMIT as u64;

/// A sound answer, or a whole error.
struct Sound {
    profile: &'static str,
    feature: &'static str,
    kind: Kind,
    body: Vec<u8>,
}

static SOUND: LazyLock<Vec<Sound>> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut all = Vec::new();
    for profile in PROFILES {
        let features = Feature::ALL
            .iter()
            .filter(|feature| profile.features.has(**feature));
        for feature in features {
            let path = format!("{}/{}", profile.name, feature.name());
            for exchange in fixture::read(&root, &path).unwrap() {
                let counts = exchange.options.contains_key("count");
                let Some(answer) = exchange.answer else {
                    continue;
                };
                let kind = match exchange.ask.as_str() {
                    _ if answer.status >= 300 => Kind::Error(400),
                    "models" => Kind::Models,
                    "embeddings" => Kind::Embeddings,
                    _ if counts => Kind::Count,
                    _ => match KINDS.iter().find(
                        |kind| matches!(kind, Kind::Chat(media_type) if *media_type == answer.media_type),
                    ) {
                        Some(kind) => *kind,
                        None => continue,
                    },
                };
                let body = match answer.media_type.as_str() {
                    "application/vnd.amazon.eventstream" => support::aws::stream(&answer.body),
                    _ => answer.body.into_bytes(),
                };
                all.push(Sound {
                    profile: profile.name,
                    feature: feature.name(),
                    kind,
                    body,
                });
            }
        }
    }
    all
});

/// The sound answers that are a stream of lines.
static STREAMS: LazyLock<Vec<&Sound>> = LazyLock::new(|| {
    let lines = |sound: &&Sound| {
        matches!(
            sound.kind,
            Kind::Chat("text/event-stream" | "application/x-ndjson")
        ) && !sound.body.is_empty()
    };
    SOUND.iter().filter(lines).collect()
});

#[test]
fn what_the_fuzzer_found_is_right_now() {
    for file in fs::read_dir(corpus()).unwrap() {
        feed::run(&fs::read(file.unwrap().path()).unwrap());
    }
}

#[test]
fn the_fixtures_give_sound_answers_of_every_profile() {
    for profile in PROFILES {
        let of = |chat: bool| {
            SOUND
                .iter()
                .filter(|sound| sound.profile == profile.name)
                .filter(|sound| matches!(sound.kind, Kind::Chat(_)) == chat)
                .count()
        };
        assert!(
            of(true) > 5 && of(false) > 0,
            "{}: {} and {}",
            profile.name,
            of(true),
            of(false)
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 1024, ..ProptestConfig::default() })]

    #[test]
    fn any_cut_and_any_byte_changed_gives_events_and_at_most_one_error(
        which in any::<Index>(),
        end in any::<Index>(),
        cut in any::<bool>(),
        changes in proptest::collection::vec((any::<Index>(), any::<u8>()), 0..4),
        pieces in proptest::collection::vec(1_usize..200, 1..20),
    ) {
        let sound = &SOUND[which.index(SOUND.len())];
        let mut body = sound.body.clone();
        for (at, byte) in changes {
            if !body.is_empty() {
                let at = at.index(body.len());
                body[at] = byte;
            }
        }
        if cut {
            body.truncate(end.index(body.len() + 1));
        }
        let wire = feed::wire(sound.profile.as_bytes());
        let mut rest = &*body;
        let mut sizes = pieces.iter().cycle();
        let pieces = std::iter::from_fn(|| {
            let size = (*sizes.next()?).min(rest.len());
            let (piece, after) = rest.split_at(size);
            rest = after;
            (size > 0).then_some(piece)
        });
        feed::answer(wire, sound.kind, pieces, &body);
    }

    #[test]
    fn any_events_lost_doubled_or_out_of_order_give_events_and_at_most_one_error(
        which in any::<Index>(),
        order in proptest::collection::vec(any::<Index>(), 0..12),
    ) {
        let sound = &STREAMS[which.index(STREAMS.len())];
        let events: Vec<_> = sound.body.split_inclusive(|byte| *byte == b'\n').collect();
        let events: Vec<_> = events.chunk_by(|line, _| *line != b"\n").collect();
        let chosen = order.iter().flat_map(|at| events[at.index(events.len())]);
        let body: Vec<u8> = chosen.flat_map(|line| line.iter().copied()).collect();
        let wire = feed::wire(sound.profile.as_bytes());
        feed::answer(wire, sound.kind, body.chunks(64), &body);
    }

    #[test]
    fn an_answer_that_pretends_to_be_something_else_is_no_harm(
        which in any::<Index>(),
        profile in any::<Index>(),
        kind in any::<Index>(),
        piece in 0_u8..=255,
    ) {
        let sound = &SOUND[which.index(SOUND.len())];
        let profile = PROFILES[profile.index(PROFILES.len())].name;
        feed::run(&feed::input(profile, KINDS[kind.index(KINDS.len())], piece, &sound.body));
    }
}

#[test]
fn what_never_ends_takes_no_more_memory_than_the_limit() {
    let frame = {
        // The head of an event-stream message that promises 16 MiB.
        let mut frame = vec![0_u8; 12];
        frame[..4].copy_from_slice(&(16_u32 << 20).to_be_bytes());
        frame
    };
    let endless: [(&str, &[u8], &[u8]); 8] = [
        ("one line", b"", b"xxxxxxxxxxxxxxxx"),
        ("one field", b"data: ", b"xxxxxxxxxxxxxxxx"),
        ("lines of one event", b"", b"data: x\n"),
        (
            "one string",
            b"data: {\"choices\":[{\"delta\":{\"content\":\"",
            b"xxxxxxxxxxxxxxxx",
        ),
        ("one document", b"{\"choices\":[", b"{\"a\":[1,2,3]},"),
        ("depth", b"data: ", b"[[[[[[[[[[[[[[[["),
        ("comments", b"", b": ping\n\n"),
        ("a frame", &frame, b"xxxxxxxxxxxxxxxx"),
    ];
    for profile in PROFILES {
        let wire = feed::wire(profile.name.as_bytes());
        for kind in KINDS.iter().filter(|kind| matches!(kind, Kind::Chat(_))) {
            for (what, begin, again) in endless {
                let piece = again.repeat(4096 / again.len());
                let total = 8 * LIMIT;
                let pieces =
                    std::iter::once(begin).chain(std::iter::repeat_n(&*piece, total / piece.len()));
                // Only its length counts, as the bound of what may come out.
                let body = vec![0; total];
                let counted =
                    allocation_counter::measure(|| feed::answer(wire, *kind, pieces, &body));
                assert!(
                    counted.bytes_max <= ROOM,
                    "{} {kind:?} {what}: {} bytes",
                    profile.name,
                    counted.bytes_max
                );
            }
        }
    }
}

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/provider_decoders")
}

/// Writes the fuzz target's corpus anew: of each format, the smallest sound answer of each feature and kind. What a
/// fuzzer found (`found-...`) stays. Run it with `cargo test -p lapce-ai-providers --test decoders -- --ignored`.
#[test]
#[ignore = "it writes files"]
fn the_corpus_is_written() {
    let folder = corpus();
    let mut smallest: BTreeMap<_, &Sound> = BTreeMap::new();
    for sound in SOUND.iter() {
        let profile = PROFILES
            .iter()
            .find(|profile| profile.name == sound.profile)
            .unwrap();
        let kind = KINDS.iter().position(|kind| *kind == sound.kind).unwrap();
        let place = (profile.format.title(), sound.feature, kind);
        let kept = smallest.entry(place).or_insert(sound);
        if sound.body.len() < kept.body.len() {
            *kept = sound;
        }
    }
    for file in fs::read_dir(&folder).unwrap() {
        let file = file.unwrap();
        if !file.file_name().to_string_lossy().starts_with("found-") {
            fs::remove_file(file.path()).unwrap();
        }
    }
    for ((_, feature, kind), sound) in smallest {
        let name = format!("{}-{feature}-{kind}", sound.profile);
        let input = feed::input(sound.profile, sound.kind, 64, &sound.body);
        fs::write(folder.join(name), input).unwrap();
    }
}
