//! Restarted by a service manager: with a stand-in for systemd's socket, which keeps what it is given.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Stdio};
use std::time::Duration;

use lapce_ai_client::ai::StreamEvent;
use lapce_ai_client::{BlockingClient, ErrorCode, Options};
use lapce_ai_proto::MessageType;
use lapce_ai_shm::recv_with_fds;
use rustix::process::Signal;
use support::{ANSWERS, HANGS, Home, connect, question, signal, until, wait};

/// What a service manager hears and keeps.
struct Manager<'a> {
    home: &'a Home,
    socket: UnixDatagram,
    heard: Vec<String>,
    store: BTreeMap<String, OwnedFd>,
    starts: u32,
}

impl<'a> Manager<'a> {
    fn new(home: &'a Home) -> Self {
        let socket = UnixDatagram::bind(home.path("notify")).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self {
            home,
            socket,
            heard: Vec::new(),
            store: BTreeMap::new(),
            starts: 0,
        }
    }

    fn listen(&mut self) {
        let mut bytes = [0; 4096];
        loop {
            match recv_with_fds(self.socket.as_fd(), &mut bytes) {
                Ok((n, descriptors)) => {
                    let said = String::from_utf8(bytes[..n].to_vec()).unwrap();
                    let name = said
                        .lines()
                        .find_map(|line| line.strip_prefix("FDNAME="))
                        .unwrap_or_default();
                    if said.starts_with("FDSTORE=1") {
                        let [descriptor] = <[OwnedFd; 1]>::try_from(descriptors).unwrap();
                        // The first copy of a descriptor is as good as the second.
                        self.store.insert(name.to_owned(), descriptor);
                    } else if said.starts_with("FDSTOREREMOVE=1") {
                        self.store.remove(name);
                    }
                    self.heard.push(said);
                }
                Err(lapce_ai_shm::FdError::System { source, .. })
                    if source.kind() == ErrorKind::WouldBlock =>
                {
                    return;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn wait_for(&mut self, word: &str) {
        let mut at = None;
        until("the daemon says it to its manager", || {
            self.listen();
            at = self.heard.iter().position(|said| said == word);
            at.is_some()
        });
        self.heard.drain(..=at.unwrap());
    }

    fn kept(&mut self) -> Vec<&str> {
        self.listen();
        self.store.keys().map(String::as_str).collect()
    }

    /// Starts the daemon with what is kept, as descriptors 3 and above; waits until it is ready.
    fn start(&mut self) -> Child {
        self.listen();
        self.starts += 1;
        let log = self.home.path(&format!("log-{}", self.starts));
        // A shell puts them in their places: no program's own descriptors are these.
        let places = "exec 3<&0 4<&1 5<&2 0</dev/null 1>/dev/null 2>\"$LOG\"; export LISTEN_PID=$$; exec \"$0\" \"$@\"";
        let mut command = self.home.command_by_shell(places, &["serve"]);
        command
            .env("NOTIFY_SOCKET", self.home.path("notify"))
            .env("FDSTORE", "16")
            .env("LOG", log);
        let names: Vec<&str> = self.store.keys().map(String::as_str).collect();
        command
            .env("LISTEN_FDS", names.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"));
        let mut kept = self.store.values().map(|kept| kept.try_clone().unwrap());
        let mut next = || kept.next().map_or_else(Stdio::null, Stdio::from);
        command.stdin(next()).stdout(next()).stderr(next());
        assert!(kept.next().is_none(), "three have places");
        let child = command.spawn().unwrap();
        self.wait_for("READY=1");
        child
    }

    fn log(&self) -> String {
        fs::read_to_string(self.home.path(&format!("log-{}", self.starts))).unwrap()
    }
}

fn pid(child: &Child) -> i32 {
    i32::try_from(child.id()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_by_the_service_manager_is_one_life() {
    let home = Home::new(&format!("[ipc]\ndrain_timeout_secs = 0.3\n{HANGS}"));
    let mut manager = Manager::new(&home);
    let mut first = manager.start();
    assert_eq!(manager.kept(), ["lock", "socket"]);
    let client = connect(&home).await;
    let idle = connect(&home).await;
    let instance = client.welcome().unwrap().instance;
    let mut stream = client.chat(&question()).await.unwrap();
    assert!(matches!(
        stream.next().await,
        Some(Ok(StreamEvent::Start { .. }))
    ));
    signal(pid(&first), Signal::TERM);
    manager.wait_for("STOPPING=1");
    // Asked while it stops, or while none runs: they wait.
    let meanwhile = tokio::spawn({
        let client = client.clone();
        async move { client.call(MessageType::ECHO, b"when you can").await }
    });
    let newcomer = tokio::task::spawn_blocking({
        let patient = Options {
            connect_timeout: Duration::from_secs(60),
            ..Options::new(home.socket())
        };
        move || BlockingClient::connect(patient).map(|client| client.welcome().unwrap().instance)
    });
    let error = loop {
        match stream.next().await.unwrap() {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.code(), Some(ErrorCode::ServerRestarting), "{error}");
    assert_eq!(wait(&mut first).code(), Some(0));
    assert_eq!(manager.kept(), ["estate", "lock", "socket"]);
    assert_eq!(home.names_in_runtime_dir(), ["daemon.lock", "daemon.sock"]);
    let busy = home.run(&["serve"]);
    assert!(
        busy.err.contains("running already"),
        "the lock is kept: {busy:?}"
    );

    home.configure(ANSWERS);
    let mut second = manager.start();
    assert_eq!(
        manager.kept(),
        ["lock", "socket"],
        "the estate is taken once"
    );
    assert_eq!(meanwhile.await.unwrap().unwrap(), b"when you can");
    assert_eq!(newcomer.await.unwrap().unwrap(), instance);
    idle.complete(&question()).await.unwrap();
    for client in [&client, &idle] {
        assert_eq!(client.welcome().unwrap().instance, instance);
        assert_eq!(client.counters().new_daemons, 0);
    }
    // Told to stop by a client it stops for good, and takes its names away.
    home.ok(&["stop"]);
    assert_eq!(wait(&mut second).code(), Some(0));
    assert!(home.names_in_runtime_dir().is_empty());
    // What is kept of it is of no use any more.
    let mut third = manager.start();
    assert!(
        manager.log().contains("cannot use the socket"),
        "{}",
        manager.log()
    );
    assert_eq!(manager.kept(), ["lock", "socket"]);
    client.complete(&question()).await.unwrap();
    assert_ne!(client.welcome().unwrap().instance, instance);
    signal(pid(&third), Signal::KILL);
    wait(&mut third);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_crash_it_is_another_life_behind_the_same_door() {
    let home = Home::new(ANSWERS);
    let mut manager = Manager::new(&home);
    let mut first = manager.start();
    let client = connect(&home).await;
    let before = client.welcome().unwrap().instance;
    client.complete(&question()).await.unwrap();
    signal(pid(&first), Signal::TERM);
    wait(&mut first);
    assert_eq!(manager.kept(), ["estate", "lock", "socket"]);
    // A manager that is slow to forget.
    let estate = manager.store["estate"].try_clone().unwrap();
    let mut second = manager.start();
    client.complete(&question()).await.unwrap();
    assert_eq!(client.welcome().unwrap().instance, before);
    signal(pid(&second), Signal::KILL);
    wait(&mut second);
    manager.listen();
    manager.store.insert("estate".to_owned(), estate);
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.call(MessageType::ECHO, b"well?").await }
    });
    let mut third = manager.start();
    assert_eq!(waiting.await.unwrap().unwrap(), b"well?");
    assert_ne!(client.welcome().unwrap().instance, before);
    assert_eq!(client.counters().new_daemons, 1);
    signal(pid(&third), Signal::KILL);
    wait(&mut third);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_manager_is_told_which_process_the_daemon_is() {
    let home = Home::new(ANSWERS);
    let mut manager = Manager::new(&home);
    let mut first = manager.start();
    let client = connect(&home).await;
    let next = client.restart().await.unwrap();
    manager.wait_for(&format!("MAINPID={next}"));
    manager.wait_for("READY=1");
    assert_eq!(wait(&mut first).code(), Some(0));
    client.complete(&question()).await.unwrap();
    assert_eq!(manager.kept(), ["lock", "socket"]);
    // That one is restarted by the manager.
    let instance = client.welcome().unwrap().instance;
    let next = i32::try_from(next).unwrap();
    signal(next, Signal::TERM);
    until("it has gone", || !home.daemons().contains(&next));
    let mut third = manager.start();
    client.complete(&question()).await.unwrap();
    assert_eq!(client.welcome().unwrap().instance, instance);
    signal(pid(&third), Signal::KILL);
    wait(&mut third);
}
