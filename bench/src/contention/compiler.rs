//! A compiler at work on one processor, over and over.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::child::{Child, Parent};
use crate::machine::Cpus;

/// One for each processor. They stop when this is dropped.
#[derive(Debug)]
pub(super) struct Compilers {
    children: Vec<Child>,
    _dir: TempDir,
}

impl Compilers {
    /// # Errors
    /// There is no `rustc`.
    pub(super) fn start(cpus: &Cpus) -> Result<Self> {
        let found = Command::new("rustc").arg("--version").output();
        found.context("there is no rustc to be busy with")?;
        let dir = tempfile::tempdir()?;
        fs::write(dir.path().join("lib.rs"), source())?;
        let path = dir
            .path()
            .to_str()
            .context("the temporary directory's path is no UTF-8")?;
        let mut children = Vec::new();
        for (index, cpus) in cpus.each().iter().enumerate() {
            let name = index.to_string();
            children.push(Child::start(&["compiler", path, &name], cpus, &[])?);
        }
        let mut running = Self {
            children,
            _dir: dir,
        };
        // The load is there once each has begun to compile.
        for child in &mut running.children {
            child.ask("wait")?;
        }
        Ok(running)
    }

    /// How many crates they have compiled.
    ///
    /// # Errors
    /// One of them is gone, or does not compile.
    pub(super) fn finish(self) -> Result<u64> {
        let mut done = 0;
        for mut child in self.children {
            done += child.ask("stop")?.parse::<u64>()?;
            child.finish()?;
        }
        Ok(done)
    }
}

/// The child: compiles the same crate until it is told to stop.
pub(crate) fn compile(parent: Parent, dir: &Path, name: &str) -> Result<()> {
    let (stop, done) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let out = dir.join(format!("out-{name}.rlib"));
    let source = dir.join("lib.rs");
    let worker = {
        let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
        thread::spawn(move || -> Result<()> {
            while !stop.load(Ordering::Relaxed) {
                let mut compiler = Command::new("rustc")
                    .args(["--edition", "2024", "--crate-type", "lib", "-O"])
                    .args(["-C", "codegen-units=1", "-o"])
                    .arg(&out)
                    .arg(&source)
                    .stdin(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()?;
                let status = loop {
                    if let Some(status) = compiler.try_wait()? {
                        break status;
                    }
                    if stop.load(Ordering::Relaxed) {
                        compiler.kill()?;
                        compiler.wait()?;
                        return Ok(());
                    }
                    thread::sleep(Duration::from_millis(5));
                };
                anyhow::ensure!(status.success(), "rustc ended with {status}");
                done.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        })
    };
    let mut worker = Some(worker);
    let served = parent.serve(|request| {
        if request == "stop" {
            stop.store(true, Ordering::Relaxed);
            if let Some(worker) = worker.take() {
                worker
                    .join()
                    .map_err(|_| anyhow::anyhow!("the compiling thread panicked"))??;
            }
        } else {
            thread::sleep(Duration::from_millis(200));
        }
        Ok(done.load(Ordering::Relaxed).to_string())
    });
    stop.store(true, Ordering::Relaxed);
    if let Some(worker) = worker.take() {
        let _ = worker.join();
    }
    served
}

/// A crate that takes a second or two: generic code that must be made for many types.
fn source() -> String {
    let mut source = String::from(
        "use std::collections::{BTreeMap, HashMap};\n\
         pub fn sort<T: Ord + Clone + std::hash::Hash + std::fmt::Debug>(mut v: Vec<T>) -> String {\n\
         v.sort(); let mut m: HashMap<T, usize> = HashMap::new(); let mut b: BTreeMap<T, usize> = BTreeMap::new();\n\
         for x in &v { *m.entry(x.clone()).or_default() += 1; *b.entry(x.clone()).or_default() += 1; }\n\
         format!(\"{v:?} {m:?} {b:?}\") }\n",
    );
    for number in 0..40 {
        // Writing to a String cannot fail.
        let _ = write!(
            source,
            "#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)] pub struct S{number}(pub u{}, pub String);\n\
             pub fn f{number}(v: Vec<S{number}>) -> String {{ sort(v) }}\n",
            [8, 16, 32, 64][number % 4]
        );
    }
    source
}
