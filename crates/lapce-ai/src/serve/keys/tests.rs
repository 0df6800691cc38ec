use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lapce_ai_providers::{
    BoxFuture, ChatRequest, ChatStream, Local, ModelInfo, Provider, ProviderError,
};
use secrecy::ExposeSecret;

use super::command::key_of;
use super::*;
use crate::config::{KeyCommand, KeyProgram};

const KEY: &str = "sk-s3cret-of-the-tests";

fn file(bytes: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("the.key");
    fs::write(&path, bytes).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    (directory, path)
}

#[test]
fn a_file_is_read_without_the_end_of_its_line() {
    for mode in [0o600, 0o400, 0o440] {
        let (_directory, path) = file(format!("{KEY}\r\n").as_bytes(), mode);
        assert_eq!(in_file(&path).unwrap().expose_secret(), KEY);
    }
}

#[test]
fn a_file_that_others_can_get_at_is_refused_with_what_to_do() {
    for mode in [0o604, 0o620, 0o666, 0o602, 0o644] {
        let (_directory, path) = file(KEY.as_bytes(), mode);
        let error = in_file(&path).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Configuration);
        let text = format!("{error} {error:?}");
        for part in [
            "(api_key_file)",
            "the.key",
            &format!("mode {mode:04o}"),
            "chmod 600",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains(KEY));
    }
}

#[test]
fn what_is_no_key_is_told_without_a_word_of_it() {
    let long = vec![b's'; LONGEST + 1];
    for (bytes, part) in [
        (&b" \n"[..], "holds nothing"),
        (&b"\xFF\xFEsss"[..], "holds no text"),
        (&long, "holds more than 16384 bytes"),
    ] {
        let (_directory, path) = file(bytes, 0o600);
        let text = in_file(&path).unwrap_err().to_string();
        assert!(text.contains(part) && !text.contains("sss"), "{text}");
    }
    let (directory, _) = file(b"x", 0o600);
    let nothing = in_file(&directory.path().join("no.key")).unwrap_err();
    assert!(nothing.to_string().contains("cannot be read"), "{nothing}");
    let folder = in_file(directory.path()).unwrap_err();
    assert!(folder.to_string().contains("no regular file"), "{folder}");
}

#[test]
fn variables_are_named_and_trimmed() {
    let lookup = |name: &str| match name {
        "A" => Some(format!(" {KEY}\n")),
        "B" => Some(" ".to_owned()),
        _ => None,
    };
    assert_eq!(in_variable("A", lookup).unwrap().expose_secret(), KEY);
    let empty = in_variable("B", lookup).unwrap_err().to_string();
    assert!(
        empty.contains("variable B (api_key_env) is empty"),
        "{empty}"
    );
    let absent = in_variable("C", lookup).unwrap_err().to_string();
    assert!(absent.contains("C (api_key_env) is not set"), "{absent}");
}

fn shell(line: &str) -> KeyCommand {
    KeyCommand {
        run: KeyProgram::Shell(line.to_owned()),
        ttl: None,
        timeout: Duration::from_secs(60),
    }
}

#[tokio::test]
async fn a_command_s_output_is_the_key() {
    let printed = key_of(&shell(&format!("echo {KEY}"))).await.unwrap();
    assert_eq!(printed.expose_secret(), KEY);
    let program = KeyCommand {
        // No shell looks at it.
        run: KeyProgram::Program("printf".into(), vec!["%s\n".into(), "$HOME;x".into()]),
        ..shell("")
    };
    assert_eq!(key_of(&program).await.unwrap().expose_secret(), "$HOME;x");
}

#[tokio::test]
async fn a_command_that_gives_no_key_is_named_and_nothing_of_it_is_told() {
    let long = format!("while :; do echo {KEY}; done");
    for (line, part) in [
        (
            format!("echo {KEY}; echo {KEY} >&2; exit 3"),
            "failed (exit status: 3)",
        ),
        (format!("echo {KEY}; kill -9 $$"), "failed (signal: 9"),
        (format!("true {KEY}"), "printed nothing"),
        (long, "printed more than 16384 bytes"),
        ("printf '\\377'".to_owned(), "printed no text"),
    ] {
        let error = key_of(&shell(&line)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Configuration);
        let text = format!("{error} {error:?}");
        assert!(
            text.contains("`/bin/sh` (api_key_command)") && text.contains(part),
            "{text}"
        );
        assert!(!text.contains(KEY), "{text}");
    }
    let absent = KeyCommand {
        run: KeyProgram::Program("/no/such/program".into(), vec![KEY.into()]),
        ..shell("")
    };
    let text = key_of(&absent).await.unwrap_err().to_string();
    assert!(
        text.contains("`/no/such/program`") && text.contains("cannot be started"),
        "{text}"
    );
    assert!(!text.contains(KEY));
}

#[tokio::test]
async fn a_command_that_takes_too_long_ends_with_all_that_it_started() {
    let directory = tempfile::tempdir().unwrap();
    let pids = directory.path().join("pids");
    // A child of the shell's own holds the pipe open, too.
    let line = format!(
        "sleep 1000 & echo $! >{0}.new; mv {0}.new {0}; wait",
        pids.display()
    );
    let command = KeyCommand {
        timeout: Duration::from_secs(1),
        ..shell(&line)
    };
    let text = key_of(&command).await.unwrap_err().to_string();
    assert!(
        text.contains("took longer than 1 s (api_key_timeout_secs)"),
        "{text}"
    );
    let child = fs::read_to_string(&pids).unwrap();
    // Whoever adopted it may take a moment to bury it.
    let alive = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z ")
    };
    for _ in 0..10_000 {
        if !alive() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("{child} still runs");
}

/// Answers to one key, and refuses all others.
#[derive(Debug)]
struct Guarded(Option<Local>);

impl Provider for Guarded {
    fn chat<'a>(
        &'a self,
        request: &'a ChatRequest,
    ) -> BoxFuture<'a, Result<ChatStream, ProviderError>> {
        match &self.0 {
            Some(local) => local.chat(request),
            None => Box::pin(std::future::ready(Err(ProviderError::new(
                ErrorKind::Authentication,
                "no",
            )))),
        }
    }

    fn models(&self) -> BoxFuture<'_, Result<Vec<ModelInfo>, ProviderError>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }
}

/// A provider whose command prints `key-1`, `key-2`, and so on; how often it was made; the place of the count.
fn counted(
    ttl: Option<Duration>,
    right: &'static str,
) -> (ByCommand, Arc<AtomicU32>, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let count = directory.path().join("count");
    fs::write(&count, "0").unwrap();
    let line = format!(
        "n=$(($(cat {0}) + 1)); echo $n >{0}; echo key-$n",
        count.display()
    );
    let command = KeyCommand {
        ttl,
        ..shell(&line)
    };
    let made = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&made);
    let provider = ByCommand::new("guarded", command, move |key| {
        counter.fetch_add(1, Ordering::Relaxed);
        let local = (key.expose_secret() == right).then(Local::default);
        Ok(Arc::new(Guarded(local)))
    });
    (provider, made, directory)
}

#[tokio::test]
async fn a_command_runs_when_it_is_needed_and_its_key_is_kept() {
    let (provider, made, _directory) = counted(None, "key-1");
    assert_eq!(made.load(Ordering::Relaxed), 0);
    let request = ChatRequest::new("local").with(lapce_ai_providers::Message::user("x"));
    // Those who come at once wait for one command.
    let (first, second) = tokio::join!(provider.chat(&request), provider.chat(&request));
    assert!(first.is_ok() && second.is_ok());
    provider.models().await.unwrap();
    assert_eq!(made.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_refused_key_is_asked_for_anew() {
    let (provider, made, _directory) = counted(None, "key-2");
    let request = ChatRequest::new("local").with(lapce_ai_providers::Message::user("x"));
    let refused = provider.chat(&request).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Authentication);
    assert!(provider.chat(&request).await.is_ok());
    assert!(provider.chat(&request).await.is_ok());
    assert_eq!(made.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn an_old_key_is_asked_for_anew() {
    let (provider, made, _directory) = counted(Some(Duration::ZERO), "key-1");
    provider.models().await.unwrap();
    provider.models().await.unwrap();
    assert_eq!(made.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_command_that_fails_is_run_again_and_names_the_provider() {
    let provider = ByCommand::new("guarded", shell("exit 1"), |_| {
        Ok(Arc::new(Guarded(None)) as Arc<dyn Provider>)
    });
    let error = provider.models().await.unwrap_err();
    assert!(
        error.to_string().starts_with("guarded: wrong settings"),
        "{error}"
    );
    assert!(format!("{provider:?}").contains("/bin/sh"));
    assert!(!format!("{provider:?}").contains("exit 1"));
}
