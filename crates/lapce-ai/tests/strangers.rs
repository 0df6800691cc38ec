//! Both ends beside programs that we did not write: llama.cpp's own server as the provider, and a Python client that
//! was written from docs/protocol.md alone.
//!
//! `./test` sets up what llama.cpp needs and says where it is; without that the llama tests say so and do nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;
use support::{Home, ended, first_bytes, signal, until};

/// llama.cpp's server on a tiny model.
struct Llama {
    child: Child,
    port: u64,
}

impl Llama {
    fn start() -> Option<Self> {
        let python = std::env::var_os("LAPCE_AI_TEST_LLAMA_PYTHON");
        let model = std::env::var_os("LAPCE_AI_TEST_LLAMA_MODEL");
        let (Some(python), Some(model)) = (python, model) else {
            // Past the harness's capture: a test that did nothing must not look like one that passed.
            let note =
                "skipped: LAPCE_AI_TEST_LLAMA_PYTHON is not set; run ./test for the set-up\n";
            std::io::stderr().write_all(note.as_bytes()).unwrap();
            return None;
        };
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ci/llama/serve.py");
        let mut child = Command::new(python)
            .arg(script)
            .arg("--model")
            .arg(model)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        let ready: Value = serde_json::from_str(&line).expect("llama.cpp's server did not start");
        Some(Self {
            child,
            port: ready["port"].as_u64().unwrap(),
        })
    }

    fn home(&self) -> Home {
        Home::new(&format!(
            "[providers.llama]\ntype = 'openai'\nbase_url = 'http://127.0.0.1:{}/v1'\ndefault_model = 'tiny'\n",
            self.port
        ))
    }

    /// Whether any of the server's slots generates tokens, by its own word.
    fn is_busy(&self) -> bool {
        let mut stream =
            TcpStream::connect(("127.0.0.1", u16::try_from(self.port).unwrap())).unwrap();
        let request = "GET /slots HTTP/1.1\r\nHost: llama\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        answer.contains("\"is_processing\":true")
    }
}

impl Drop for Llama {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn shared_memory_names() -> BTreeSet<std::ffi::OsString> {
    fs::read_dir("/dev/shm").map_or_else(
        |_| BTreeSet::new(),
        |entries| {
            let names = entries.map(|entry| entry.unwrap().file_name());
            names
                .filter(|name| name.to_string_lossy().contains("lapce"))
                .collect()
        },
    )
}

#[test]
fn llama_cpp_streams_through_shared_memory() {
    let Some(llama) = Llama::start() else { return };
    let home = llama.home();
    let names_before = shared_memory_names();

    let plain = home.ok(&["chat", "tell me a story"]);
    assert!(plain.len() > 20, "{plain}");
    let events = home.ok(&["chat", "--json", "tell me a story"]);
    let events: Vec<Value> = events
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of_type = |ty: &str| events.iter().filter(|event| event["type"] == ty).count();
    assert_eq!(events[0]["type"], "start");
    assert_eq!(events[0]["provider"], "llama");
    assert!(of_type("text") > 5, "tokens come one by one: {events:?}");
    let text: String = events
        .iter()
        .filter_map(|event| event["text"].as_str())
        .collect();
    assert_eq!(text.trim_end(), plain.trim_end());
    assert_eq!(of_type("usage"), 1);
    assert_eq!(events.last().unwrap()["type"], "finish");
    assert!(home.ok(&["models"]).contains("llama/tiny"));
    let whole = home.ok(&["chat", "--no-stream", "tell me a story"]);
    assert_eq!(whole, plain);
    let connections = home.status();
    assert_eq!(connections["connections"][0]["transport"], "shared memory");

    // Cancelled half-way: llama.cpp itself says that it has stopped.
    let mut chat = home.command(&["chat", "talk forever"]).spawn().unwrap();
    first_bytes(&mut chat);
    assert!(llama.is_busy());
    signal(i32::try_from(chat.id()).unwrap(), Signal::INT);
    assert_eq!(ended(chat).code, Some(130));
    until("llama.cpp has stopped after Ctrl-C", || !llama.is_busy());

    // The client dies.
    let mut chat = home.command(&["chat", "talk forever"]).spawn().unwrap();
    first_bytes(&mut chat);
    signal(i32::try_from(chat.id()).unwrap(), Signal::KILL);
    ended(chat);
    until("llama.cpp has stopped after the client's death", || {
        !llama.is_busy()
    });

    // The daemon dies.
    let mut chat = home.command(&["chat", "talk forever"]).spawn().unwrap();
    first_bytes(&mut chat);
    signal(home.pid(), Signal::KILL);
    let cut = ended(chat);
    assert_eq!(cut.code, Some(1), "{cut:?}");
    until("llama.cpp has stopped after the daemon's death", || {
        !llama.is_busy()
    });
    assert_eq!(home.names_in_runtime_dir(), ["daemon.lock", "daemon.sock"]);
    assert_eq!(home.ok(&["chat", "tell me a story"]), plain);
    home.ok(&["stop"]);
    until("the runtime directory is empty", || {
        home.names_in_runtime_dir().is_empty()
    });
    assert_eq!(
        shared_memory_names(),
        names_before,
        "shared memory never has a name"
    );
}

/// Lines of a Python file that are not blank, a comment or a docstring.
fn lines_of_code(text: &str) -> usize {
    let mut in_docstring = false;
    let counts = |line: &&str| {
        let line = line.trim();
        let quotes = line.matches("\"\"\"").count();
        let documents = in_docstring || line.starts_with("\"\"\"");
        in_docstring ^= quotes == 1;
        !documents && !line.is_empty() && !line.starts_with('#')
    };
    text.lines().filter(counts).count()
}

#[test]
fn a_python_client_written_from_the_document_talks_to_the_daemon() {
    let home = Home::new("[providers.local]\ntype = 'local'\ntokens_per_second = 200\n");
    let mut daemon = home.serve(&[]);
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../clients/python");
    let lines = lines_of_code(&fs::read_to_string(python.join("lapce_ai.py")).unwrap());
    assert!(
        lines < 200,
        "{lines} lines: the protocol has become too hard"
    );
    let tests = Command::new("python3")
        .args(["-m", "unittest", "-v", "test_lapce_ai"])
        .current_dir(&python)
        .env("LAPCE_AI_TEST_SOCKET", home.socket())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let tests = ended(tests);
    assert_eq!(tests.code, Some(0), "{}\n{}", tests.out, tests.err);
    assert!(!tests.err.contains("skipped"), "{}", tests.err);
    signal(daemon.pid(), Signal::TERM);
    assert!(daemon.wait().success());
}
