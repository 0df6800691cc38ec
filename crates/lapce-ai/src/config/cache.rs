//! Section `[cache]`: answers that are given again.

use lapce_ai_providers::{CacheConfig, CacheRequests};
use serde_json::Value;

use super::layers::Table;
use super::section::{Findings, Section};
use super::{DAY, kinds, name_of};

const REQUESTS: &[(&str, CacheRequests)] = &[
    ("deterministic", CacheRequests::Deterministic),
    ("all", CacheRequests::All),
    ("opt_in", CacheRequests::OptIn),
];

/// `None`: there is none.
pub(super) fn read(tree: &mut Table, findings: &mut Findings) -> Option<CacheConfig> {
    let usual = CacheConfig::default();
    let mut section = Section::take(tree, "cache", findings);
    let enable = section.get("enable", false, &kinds::switch());
    let requests = section.get(
        "requests",
        usual.requests,
        &kinds::one_of(REQUESTS, |requests| {
            Value::from(name_of(REQUESTS, *requests))
        }),
    );
    let tools = section.get("tools", usual.tools, &kinds::switch());
    let shared = section.get("shared", usual.shared, &kinds::switch());
    let max_age = section.get(
        "max_age_secs",
        usual.max_age,
        &kinds::seconds(1..=365 * DAY),
    );
    let mut size = |key, usual: usize, most| {
        let bytes = section.get(key, usual as u64, &kinds::size(1 << 10..=most));
        usize::try_from(bytes).unwrap_or(usize::MAX)
    };
    let max_bytes = size("max_size", usual.max_bytes, 1 << 36);
    let max_answer = size("max_answer_size", usual.max_answer, 1 << 30);
    section.finish();
    if max_answer > max_bytes {
        findings.conflict(
            &[("cache", "max_answer_size"), ("cache", "max_size")],
            "cache.max_answer_size must not be more than cache.max_size",
        );
    }
    enable.then_some(CacheConfig {
        max_bytes,
        max_answer,
        max_age,
        requests,
        tools,
        shared,
    })
}
