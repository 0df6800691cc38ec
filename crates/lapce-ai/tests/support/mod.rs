//! A home of its own for each test: configuration, socket, state. Whatever was started there is ended with it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "a module of several tests, of which each uses its own part"
)]

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use lapce_ai_client::ai::{AIRequest, Message};
use lapce_ai_client::{Client, Options};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_lapce-ai");
/// A provider that answers.
pub const ANSWERS: &str = "[providers.local]\ntype = 'local'\n";
/// One that says two words and then nothing more.
pub const HANGS: &str = "[providers.local]\ntype = 'local'\nfail = 'hang'\nfail_after_tokens = 2\n";
/// The longest wait for anything.
const BOUND: Duration = Duration::from_secs(60);

pub struct Home {
    dir: TempDir,
}

pub fn question() -> AIRequest {
    AIRequest::new("", vec![Message::user("are you there?")])
}

pub async fn connect(home: &Home) -> Client {
    Client::connect(Options::new(home.socket())).await.unwrap()
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Home {
    /// With nothing but `local`, unless `config` says otherwise.
    pub fn new(config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = Self { dir };
        for path in [
            home.path("run"),
            home.path("config/lapce-ai"),
            home.path("state"),
        ] {
            fs::create_dir_all(path).unwrap();
        }
        fs::set_permissions(home.path("run"), fs::Permissions::from_mode(0o700)).unwrap();
        home.configure(config);
        home
    }

    pub fn configure(&self, config: &str) {
        let text = format!("[discovery]\nenvironment = false\nloopback = false\n{config}");
        fs::write(self.path("config/lapce-ai/config.toml"), text).unwrap();
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("run/daemon.sock")
    }

    pub fn lock(&self) -> PathBuf {
        self.path("run/daemon.lock")
    }

    pub fn command(&self, args: &[&str]) -> Command {
        self.command_of(PROGRAM, args)
    }

    /// The same of another file.
    pub fn command_of(&self, program: impl AsRef<OsStr>, args: &[&str]) -> Command {
        let mut command = self.at_home(program);
        command.arg("--socket").arg(self.socket()).args(args);
        command
    }

    /// The same after a shell has done something; its script goes on with `exec "$0" "$@"`.
    pub fn command_by_shell(&self, script: &str, args: &[&str]) -> Command {
        let mut command = self.at_home("/bin/sh");
        command.args(["-c", script, PROGRAM, "--socket"]);
        command.arg(self.socket()).args(args);
        command
    }

    fn at_home(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.dir.path()).env_clear();
        // What the coverage and sanitizer runs of these tests need.
        for (name, value) in std::env::vars_os() {
            let kept = ["PATH", "LLVM_PROFILE_FILE", "LD_LIBRARY_PATH"];
            if kept.iter().any(|kept| name == *kept) {
                command.env(name, value);
            }
        }
        command
            .env("HOME", self.dir.path())
            .env("XDG_RUNTIME_DIR", self.path("run"));
        command
            .env("XDG_CONFIG_HOME", self.path("config"))
            .env("XDG_STATE_HOME", self.path("state"));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, args: &[&str]) -> Ended {
        ended(self.command(args).spawn().unwrap())
    }

    /// The same, with something on standard input.
    pub fn run_with_input(&self, args: &[&str], input: &str) -> Ended {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        ended(child)
    }

    /// Runs a command that must work, and gives its output.
    pub fn ok(&self, args: &[&str]) -> String {
        let ended = self.run(args);
        assert_eq!(ended.code, Some(0), "{args:?}: {ended:?}\n{}", self.log());
        ended.out
    }

    /// A daemon that is this test's own child, and ready.
    pub fn serve(&self, args: &[&str]) -> Daemon {
        let mut all = vec!["serve"];
        all.extend(args);
        Daemon::start(self.command(&all))
    }

    pub fn status(&self) -> Value {
        serde_json::from_str(&self.ok(&["status", "--json"])).unwrap()
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.status()["pid"].as_i64().unwrap()).unwrap()
    }

    /// The daemons that run on this home's socket, by the kernel's word.
    pub fn daemons(&self) -> Vec<i32> {
        let ours = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            words.contains(&b"serve".as_slice())
                && words.contains(&self.socket().as_os_str().as_encoded_bytes())
        };
        let processes = fs::read_dir("/proc").unwrap();
        let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        pids.filter(ours).collect()
    }

    /// What daemons that were started by commands have said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("state/lapce-ai/daemon.log")).unwrap_or_default()
    }

    pub fn names_in_runtime_dir(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("run")).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        for pid in self.daemons() {
            signal(pid, Signal::KILL);
        }
        let deadline = Instant::now() + BOUND;
        while !self.daemons().is_empty() && Instant::now() < deadline {
            thread::yield_now();
        }
    }
}

/// A daemon that is our child.
pub struct Daemon {
    pub child: Child,
    pub log: Log,
}

impl Daemon {
    /// Starts a daemon, and waits until it is ready.
    pub fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let log = Log::of(&mut child);
        let mut daemon = Self { child, log };
        daemon.log.wait_for("serving");
        daemon
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub fn wait(&mut self) -> ExitStatus {
        wait(&mut self.child)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines of a child's standard error as they come.
pub struct Log {
    lines: mpsc::Receiver<String>,
    pub seen: String,
}

impl Log {
    pub fn of(child: &mut Child) -> Self {
        Self::read(child.stderr.take().unwrap())
    }

    /// The same from wherever it leads.
    pub fn read(from: impl Read + Send + 'static) -> Self {
        let (to, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                if to.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            lines,
            seen: String::new(),
        }
    }

    /// Whether something has been said so many times by now.
    pub fn try_seen(&mut self, part: &str, times: usize) -> bool {
        for line in self.lines.try_iter() {
            self.seen.push_str(&line);
            self.seen.push('\n');
        }
        self.seen.matches(part).count() >= times
    }

    pub fn wait_for(&mut self, part: &str) {
        let deadline = Instant::now() + BOUND;
        while !self.seen.contains(part) {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            let line = line.unwrap_or_else(|_| panic!("no {part:?} in the log:\n{}", self.seen));
            self.seen.push_str(&line);
            self.seen.push('\n');
        }
    }
}

/// Waits until something is so.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + BOUND;
    while !is_so() {
        assert!(Instant::now() < deadline, "gave up waiting until {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

pub fn wait(child: &mut Child) -> ExitStatus {
    let mut status = None;
    until("the process has ended", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

/// Waits for a child's end, and takes what it wrote.
pub fn ended(child: Child) -> Ended {
    let pid = i32::try_from(child.id()).unwrap();
    let (to, from) = mpsc::channel();
    thread::spawn(move || to.send(child.wait_with_output()));
    let Ok(output) = from.recv_timeout(BOUND) else {
        signal(pid, Signal::KILL);
        panic!("process {pid} did not end");
    };
    let Output {
        status,
        stdout,
        stderr,
    } = output.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended {
        code: status.code(),
        out: text(stdout),
        err: text(stderr),
    }
}

pub fn signal(pid: i32, signal: Signal) {
    // Whoever has gone already needs none.
    let _ = kill_process(Pid::from_raw(pid).unwrap(), signal);
}

/// Stops a process, and waits until each of its threads stands still: the signal reaches them one by one.
pub fn stop(pid: i32) {
    signal(pid, Signal::STOP);
    until("all threads stand still", || {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        threads.flatten().all(|thread| {
            // "12 (name) T ...", and a name may have anything in it.
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            let after = stat.rsplit(')').next().unwrap_or_default();
            after.trim_start().starts_with('T')
        })
    });
}

/// Reads from a child's standard output until it has written something.
pub fn first_bytes(child: &mut Child) -> Vec<u8> {
    let mut bytes = [0; 64];
    let read = child.stdout.as_mut().unwrap().read(&mut bytes).unwrap();
    assert!(read > 0, "it ended without a word: {:?}", child.wait());
    bytes[..read].to_vec()
}

/// An `OpenAI` server for one request at a time: gives the request's text, then is told what to answer.
pub struct OpenAi {
    listener: TcpListener,
}

impl OpenAi {
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Self { listener }
    }

    pub fn url(&self) -> String {
        format!("http://{}/v1", self.listener.local_addr().unwrap())
    }

    /// The configuration of a daemon that asks nobody else.
    pub fn config(&self) -> String {
        format!(
            "[providers.scripted]\ntype = 'openai'\nbase_url = '{}'\napi_key = 'sk-test-12345'\ndefault_model = 'm-1'\n",
            self.url()
        )
    }

    /// Waits for its one request, and begins to answer with a word.
    pub async fn begun(self) -> TcpStream {
        let asked = tokio::task::spawn_blocking(move || self.request().2);
        let mut answer = asked.await.unwrap();
        Self::begin(&mut answer);
        Self::say(&mut answer, "word");
        answer
    }

    /// The next request: its head and body, and the connection.
    pub fn request(&self) -> (String, String, TcpStream) {
        let mut accepted = None;
        until("a request comes", || {
            accepted = self.listener.accept().ok();
            accepted.is_some()
        });
        let (mut stream, _) = accepted.unwrap();
        stream.set_read_timeout(Some(BOUND)).unwrap();
        let mut bytes = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            let read = stream.read(&mut chunk).unwrap();
            assert!(read > 0, "the request was cut");
            bytes.extend_from_slice(&chunk[..read]);
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let Some((head, body)) = text.split_once("\r\n\r\n") else {
                continue;
            };
            let length = head
                .lines()
                .find_map(|line| {
                    line.to_lowercase()
                        .strip_prefix("content-length:")?
                        .trim()
                        .parse()
                        .ok()
                })
                .unwrap_or(0);
            if body.len() >= length {
                return (head.to_owned(), body.to_owned(), stream);
            }
        }
    }

    pub fn begin(stream: &mut TcpStream) {
        let head =
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
    }

    pub fn say(stream: &mut TcpStream, text: &str) {
        let event = serde_json::json!({"id": "1", "object": "chat.completion.chunk", "model": "m-1",
            "choices": [{"index": 0, "delta": {"content": text}}]});
        write!(stream, "data: {event}\n\n").unwrap();
    }

    pub fn end(stream: &mut TcpStream) {
        let event = serde_json::json!({"id": "1", "object": "chat.completion.chunk", "model": "m-1",
            "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]});
        write!(stream, "data: {event}\n\ndata: [DONE]\n\n").unwrap();
    }
}

pub fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// What a server answers to one request: the pieces of its body, sent one by one.
pub struct Canned {
    pub status: u16,
    pub media_type: &'static str,
    pub headers: String,
    pub body: String,
}

impl Canned {
    pub fn json(body: &Value) -> Self {
        Self {
            status: 200,
            media_type: "application/json",
            headers: String::new(),
            body: body.to_string(),
        }
    }

    /// Server-sent events, ended as OpenAI ends them.
    pub fn stream(documents: &[Value]) -> Self {
        let events = documents
            .iter()
            .map(|document| format!("data: {document}\n\n"));
        Self {
            media_type: "text/event-stream",
            body: events.collect::<String>() + "data: [DONE]\n\n",
            ..Self::json(&Value::Null)
        }
    }

    pub fn send(&self, stream: &mut TcpStream) {
        let Self {
            status,
            media_type,
            headers,
            body,
        } = self;
        write!(
            stream,
            "HTTP/1.1 {status} Status\r\ncontent-type: {media_type}\r\ncontent-length: {}\r\nconnection: close\r\n{headers}\r\n{body}",
            body.len()
        )
        .unwrap();
    }
}
