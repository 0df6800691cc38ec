//! The rules of the house that a machine can check: which crate may know which, and where `unsafe` may stand.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap()
}

/// What each crate may know of ours, as ARCHITECTURE.md draws it.
fn allowed() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    [
        ("shm", vec![]),
        ("proto", vec![]),
        ("providers", vec![]),
        ("transport", vec!["shm", "proto"]),
        ("client", vec!["transport", "proto"]),
        ("server", vec!["transport", "proto"]),
        (
            "lapce-ai",
            vec!["shm", "proto", "transport", "client", "server", "providers"],
        ),
        (
            "bench",
            vec![
                "shm",
                "proto",
                "transport",
                "client",
                "server",
                "lapce-ai",
                "providers",
            ],
        ),
    ]
    .into_iter()
    .map(|(name, known)| (name, known.into_iter().collect()))
    .collect()
}

fn short(name: &str) -> String {
    name.strip_prefix("lapce-ai-").unwrap_or(name).to_owned()
}

#[test]
fn dependencies_run_one_way() {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
        ])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let allowed = allowed();
    let mut seen = 0;
    for package in metadata["packages"].as_array().unwrap() {
        let name = short(package["name"].as_str().unwrap());
        let known = allowed.get(name.as_str()).unwrap_or_else(|| {
            panic!("{name} is new: give it its place in ARCHITECTURE.md and here")
        });
        seen += 1;
        for dependency in package["dependencies"].as_array().unwrap() {
            let target = dependency["name"].as_str().unwrap();
            // Tests may look behind the scenes; the product may not.
            if !target.starts_with("lapce-ai") || dependency["kind"] == "dev" {
                continue;
            }
            assert!(
                known.contains(short(target).as_str()),
                "{name} must not depend on {target}"
            );
        }
    }
    assert_eq!(seen, allowed.len(), "a crate of the list is gone");
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn crates() -> Vec<PathBuf> {
    let mut dirs: Vec<_> = fs::read_dir(root().join("crates"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    dirs.push(root().join("bench"));
    dirs
}

#[test]
fn unsafe_stands_in_one_crate_only() {
    for dir in crates() {
        if dir.ends_with("shm") {
            continue;
        }
        let mut roots = vec![dir.join("src/lib.rs"), dir.join("src/main.rs")];
        roots.retain(|path| path.exists());
        assert!(!roots.is_empty(), "{} has no root", dir.display());
        for root in roots {
            let text = fs::read_to_string(&root).unwrap();
            assert!(
                text.contains("#![forbid(unsafe_code)]"),
                "{} must say #![forbid(unsafe_code)]",
                root.display()
            );
        }
    }
}

/// Deadlines, time-outs and waits are counted by a clock that nobody sets: `Instant`, which is `CLOCK_MONOTONIC`. So a jump of
/// the time of day changes nothing between editor, daemon and provider's connection.
#[test]
fn no_wait_depends_on_the_time_of_day() {
    for name in ["shm", "proto", "transport", "client", "server"] {
        let mut files = Vec::new();
        sources(&root().join("crates").join(name).join("src"), &mut files);
        assert!(!files.is_empty());
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            for clock in ["SystemTime", "ClockId::Realtime", "UNIX_EPOCH"] {
                assert!(!text.contains(clock), "{}: {clock}", file.display());
            }
        }
    }
}

/// The daemon knows those that follow it by their process group: nobody else may be in it.
#[test]
fn no_command_runs_in_the_daemons_process_group() {
    let mut commands = 0;
    for name in ["lapce-ai", "providers"] {
        let mut files = Vec::new();
        sources(&root().join("crates").join(name).join("src"), &mut files);
        for file in files {
            if file.ends_with("tests.rs") {
                continue;
            }
            let text = fs::read_to_string(&file).unwrap();
            if text.contains("Command::new(\"") || text.contains("Command::new(program") {
                commands += 1;
                let grouped = ["process_group(0)", "lineage.prepare("];
                let is_grouped = grouped.iter().any(|grouped| text.contains(grouped));
                assert!(is_grouped, "{}", file.display());
            }
        }
    }
    assert!(commands >= 4, "{commands} files that start processes");
}

/// A promise whose proof has another name by now has none.
#[test]
fn the_proofs_of_the_reliability_page_exist() {
    let mut files = Vec::new();
    for dir in crates() {
        sources(&dir.join("src"), &mut files);
        sources(&dir.join("tests"), &mut files);
    }
    let texts: Vec<String> = files
        .iter()
        .map(|file| fs::read_to_string(file).unwrap())
        .collect();
    let page = fs::read_to_string(root().join("docs/reliability.md")).unwrap();
    let quoted = page.split('`').skip(1).step_by(2);
    let (mut tests, mut paths) = (0, 0);
    for word in quoted {
        // Names of tests are sentences; those of settings and errors are shorter.
        let is_name = word
            .chars()
            .all(|char| char == '_' || char.is_ascii_alphanumeric());
        if is_name && word.matches('_').count() >= 3 {
            let function = format!("fn {word}(");
            let found = texts.iter().any(|text| text.contains(&function));
            assert!(found, "no test has the name {word}");
            tests += 1;
        } else if word.starts_with("crates/") && !word.ends_with('/') {
            assert!(root().join(word).exists(), "there is no {word}");
            paths += 1;
        }
    }
    assert!(tests > 80 && paths > 40, "{tests} tests, {paths} paths");
}

#[test]
fn every_crate_is_worth_its_name() {
    for dir in crates() {
        let mut files = Vec::new();
        sources(&dir.join("src"), &mut files);
        let lines: usize = files
            .iter()
            .map(|file| fs::read_to_string(file).unwrap().lines().count())
            .sum();
        assert!(
            lines >= 500,
            "{} has only {lines} lines: why is it a crate?",
            dir.display()
        );
    }
}
