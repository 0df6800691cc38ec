//! How much of providers is used, and by whom: in `[limits]` for each of them, in `[providers.<name>]` for one, in
//! `[clients]` for those who ask.

use lapce_ai_providers::{Limits, ModelLimits, Rate};

use super::kinds;
use super::layers::Table;
use super::section::{Findings, Section};

const MOST: u32 = 1_000_000_000;

/// Section `[clients]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientLimits {
    /// What each user may ask for.
    pub usual: Rate,
    /// Users who may ask for something else.
    pub special: Vec<(u32, Rate)>,
}

/// Section `[limits]`: what providers have that say nothing else.
pub(super) fn read_usual(tree: &mut Table, findings: &mut Findings) -> Limits {
    let mut section = Section::take(tree, "limits", findings);
    let limits = read_words(&mut section, &Limits::default());
    section.finish();
    limits
}

/// A provider's own; what it leaves out is `usual`.
pub(super) fn read(section: &mut Section<'_>, usual: &Limits) -> Limits {
    let models = section.named_tables(
        "model_limits",
        "\"gpt-4o\" = { max_in_flight = 4 }",
        |name, model, _| {
            let limits = ModelLimits {
                max_in_flight: some(model, "max_in_flight", None),
                rate: read_rate(model, Rate::default()),
            };
            Some((name.into(), limits))
        },
    );
    Limits {
        models,
        ..read_words(section, usual)
    }
}

pub(super) fn read_clients(tree: &mut Table, findings: &mut Findings) -> ClientLimits {
    let mut section = Section::take(tree, "clients", findings);
    let usual = read_rate(&mut section, Rate::default());
    let special = section.named_tables(
        "users",
        "\"1000\" = { requests_per_minute = 60 }",
        |name, user, place| {
            let rate = read_rate(user, usual);
            let uid = name.parse().ok();
            if uid.is_none() {
                user.problem(place, "its name must be a user id such as 1000");
            }
            Some((uid?, rate))
        },
    );
    section.finish();
    ClientLimits { usual, special }
}

fn read_words(section: &mut Section<'_>, usual: &Limits) -> Limits {
    Limits {
        max_in_flight: some(section, "max_in_flight", usual.max_in_flight),
        queue: section.get(
            "max_waiting",
            usual.queue as u64,
            &kinds::integer(0..=100_000),
        ) as usize,
        queue_wait: section.get("max_wait_secs", usual.queue_wait, &kinds::seconds(0..=3600)),
        rate: read_rate(section, usual.rate),
        key_rate: Rate {
            requests_per_minute: some(
                section,
                "key_requests_per_minute",
                usual.key_rate.requests_per_minute,
            ),
            tokens_per_minute: some(
                section,
                "key_tokens_per_minute",
                usual.key_rate.tokens_per_minute,
            ),
        },
        models: Vec::new(),
        learn: section.get("learn_from_headers", usual.learn, &kinds::switch()),
    }
}

fn read_rate(section: &mut Section<'_>, usual: Rate) -> Rate {
    Rate {
        requests_per_minute: some(section, "requests_per_minute", usual.requests_per_minute),
        tokens_per_minute: some(section, "tokens_per_minute", usual.tokens_per_minute),
    }
}

/// A limit; 0 is none.
fn some(section: &mut Section<'_>, key: &'static str, usual: Option<u32>) -> Option<u32> {
    let limit = section.get(key, usual.unwrap_or(0), &kinds::integer(0..=MOST));
    (limit > 0).then_some(limit)
}
