//! The database itself. `daily` has sums for ever, `request` the last weeks' requests one by one; a batch is written to both in one
//! transaction, so that they agree whenever the daemon is killed.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, DirBuilder, Metadata, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lapce_ai_providers::{Book, Day, Entry, Key, NanoUsd, Totals, Usage};
use rusqlite::{Connection, ErrorCode, OpenFlags, Row, params};

/// The form of the tables. A database of another one is left alone.
const VERSION: i32 = 1;
/// How long another process may hold the database.
const BUSY: Duration = Duration::from_secs(5);
/// KiB of the file that are kept in memory during a transaction. SQLite's own 2,000 would fill up, request by request.
const CACHE: i32 = 128;

const TABLES: &str = "
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS daily (
    day INTEGER NOT NULL, client INTEGER NOT NULL, provider TEXT NOT NULL, model TEXT NOT NULL,
    requests INTEGER NOT NULL, cached INTEGER NOT NULL, unpriced INTEGER NOT NULL, estimated INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, cached_input_tokens INTEGER NOT NULL,
    cache_write_tokens INTEGER NOT NULL, reasoning_tokens INTEGER NOT NULL, cost_nano_usd INTEGER NOT NULL,
    PRIMARY KEY (day, client, provider, model)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS request (
    at_ms INTEGER NOT NULL, client INTEGER NOT NULL, provider TEXT NOT NULL, model TEXT NOT NULL,
    cached INTEGER NOT NULL, estimated INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, cached_input_tokens INTEGER NOT NULL,
    cache_write_tokens INTEGER NOT NULL, reasoning_tokens INTEGER NOT NULL, cost_nano_usd INTEGER
) STRICT;
CREATE INDEX IF NOT EXISTS request_at ON request (at_ms);
PRAGMA user_version = 1;
COMMIT;
";

/// The columns that are added up. What would be more than SQLite's largest number is that number.
const SUMS: [&str; 10] = [
    "requests",
    "cached",
    "unpriced",
    "estimated",
    "input_tokens",
    "output_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "cost_nano_usd",
];

const LIST: &str = "INSERT INTO request VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)";

/// Why the ledger cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error("{}: {source}", .path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("it was written by another version of lapce-ai (form {0}): move it away, or update")]
    Version(i32),
}

impl StoreError {
    /// Whether the file is no database, or one whose insides make no sense.
    pub(super) fn is_broken(&self) -> bool {
        let Self::Sqlite(error) = self else {
            return false;
        };
        matches!(
            error.sqlite_error_code(),
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
        )
    }
}

/// Which file it is, whatever its name: its device, and its number there.
pub(super) type FileId = (u64, u64);

/// The open database.
#[derive(Debug)]
pub(crate) struct Store {
    connection: Connection,
    file: FileId,
}

/// By what the ledger is summed up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum By {
    Provider,
    Model,
    Client,
    Day,
    /// One by one, the last hundred
    Request,
}

/// A sum of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sum {
    pub(crate) of: String,
    pub(crate) totals: Totals,
}

/// A request of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequestRow {
    /// Milliseconds since 1970.
    pub(crate) at_ms: u64,
    pub(crate) client: u32,
    pub(crate) provider: String,
    pub(crate) model: String,
    pub(crate) cached: bool,
    pub(crate) estimated: bool,
    pub(crate) tokens: Usage,
    pub(crate) cost: Option<NanoUsd>,
}

impl Store {
    /// Opens the database, and makes it if there is none. Only its owner may read it.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |source| StoreError::File {
            path: path.to_owned(),
            source,
        };
        if let Some(directory) = path.parent() {
            let mut builder = DirBuilder::new();
            builder.recursive(true).mode(0o700);
            builder.create(directory).map_err(failed)?;
        }
        // SQLite gives its other files the mode of this one.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(failed(io::Error::other("it is no regular file")));
        }
        drop(file);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY)?;
        let version = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        match version {
            VERSION | 0 => {}
            other => return Err(StoreError::Version(other)),
        }
        // After a crash of the machine the last transactions may be gone; after one of the daemon none is.
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        // Less than nothing means KiB: <https://www.sqlite.org/pragma.html#pragma_cache_size>.
        connection.pragma_update(None, "cache_size", -CACHE)?;
        if version == 0 {
            connection.execute_batch(TABLES)?;
        }
        let file = id(&metadata);
        Ok(Self { connection, file })
    }

    /// Opens it to look at it, also where nothing may be written; `None`: there is none.
    pub(crate) fn look(path: &Path) -> Result<Option<Self>, StoreError> {
        let file = match fs::metadata(path) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                let path = path.to_owned();
                return Err(StoreError::File { path, source });
            }
            Ok(metadata) => id(&metadata),
        };
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let looked = Connection::open_with_flags(path, flags).and_then(Self::readable);
        let (connection, version) = match looked {
            // Even who only reads wants to make files beside it, for locks. Where that cannot be, nobody writes; and where no
            // batch waits in the log beside it, the database is whole without one.
            Err(error) if is_denied(&error) && !has_log(path) => {
                let flags = flags | OpenFlags::SQLITE_OPEN_URI;
                Connection::open_with_flags(immutable(path), flags).and_then(Self::readable)?
            }
            looked => looked?,
        };
        match version {
            VERSION => Ok(Some(Self { connection, file })),
            // The daemon is just making it.
            0 => Ok(None),
            other => Err(StoreError::Version(other)),
        }
    }

    fn readable(connection: Connection) -> rusqlite::Result<(Connection, i32)> {
        connection.busy_timeout(BUSY)?;
        let version = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        Ok((connection, version))
    }

    /// Adds sums, and the requests that they are made of as far as those are listed.
    pub(super) fn write(
        &mut self,
        sums: &Book,
        requests: &VecDeque<Entry>,
    ) -> Result<(), StoreError> {
        let transaction = self.connection.transaction()?;
        {
            let add = SUMS.map(|column| {
                format!(
                    "{column} = min({column}, {} - excluded.{column}) + excluded.{column}",
                    i64::MAX
                )
            });
            let mut add = transaction.prepare(&format!(
                "INSERT INTO daily VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)
                 ON CONFLICT DO UPDATE SET {}",
                add.join(", ")
            ))?;
            for (key, totals) in sums.iter() {
                let Totals {
                    requests,
                    cached,
                    unpriced,
                    estimated,
                    tokens,
                    cost,
                } = totals;
                add.execute(params![
                    key.day.number(),
                    key.client,
                    &*key.provider,
                    &*key.model,
                    signed(*requests),
                    signed(*cached),
                    signed(*unpriced),
                    signed(*estimated),
                    signed(tokens.input_tokens),
                    signed(tokens.output_tokens),
                    signed(tokens.cached_input_tokens),
                    signed(tokens.cache_write_tokens),
                    signed(tokens.reasoning_tokens),
                    signed(cost.get()),
                ])?;
            }
            let mut list = transaction.prepare(LIST)?;
            for entry in requests {
                let tokens = &entry.tokens;
                list.execute(params![
                    signed(milliseconds(entry.at)),
                    entry.client,
                    &*entry.provider,
                    &*entry.model,
                    entry.cached,
                    entry.estimated,
                    signed(tokens.input_tokens),
                    signed(tokens.output_tokens),
                    signed(tokens.cached_input_tokens),
                    signed(tokens.cache_write_tokens),
                    signed(tokens.reasoning_tokens),
                    entry.cost.map(|cost| signed(cost.get())),
                ])?;
            }
        }
        transaction.commit()?;
        // The next batch may be hours away. This one is in the database even where that fails, and must not be written again.
        let _ = self.connection.execute_batch("PRAGMA shrink_memory");
        Ok(())
    }

    /// The file that was opened.
    pub(super) fn file(&self) -> FileId {
        self.file
    }

    /// Forgets requests that are older than `age`. Their sums stay.
    pub(super) fn forget_requests(&self, age: Duration) -> Result<(), StoreError> {
        let before = SystemTime::now().checked_sub(age).map_or(0, milliseconds);
        self.connection
            .execute("DELETE FROM request WHERE at_ms < ?1", [signed(before)])?;
        Ok(())
    }

    /// The sums of the month that begins on this day, in UTC.
    pub(super) fn month(&self, first: Day) -> Result<Vec<(Key, Totals)>, StoreError> {
        self.between(first, first.next_month())
    }

    /// A number that is another one after somebody else has written to the database, and is told of this connection alone:
    /// <https://www.sqlite.org/pragma.html#pragma_data_version>.
    pub(super) fn version(&self) -> Result<i64, StoreError> {
        let version = self
            .connection
            .query_row("PRAGMA data_version", [], |row| row.get(0))?;
        Ok(version)
    }

    /// What was spent since this day, the most expensive first; days in their order. For [`By::Request`]: all in one.
    pub(crate) fn sums(&self, since: Day, by: By) -> Result<Vec<Sum>, StoreError> {
        let mut sums: BTreeMap<String, Totals> = BTreeMap::new();
        for (key, totals) in self.between(since, Day::new(u32::MAX))? {
            let of = match by {
                By::Provider => key.provider.to_string(),
                By::Model => format!("{}/{}", key.provider, key.model),
                By::Client => key.client.to_string(),
                By::Day => key.day.to_string(),
                By::Request => String::new(),
            };
            sums.entry(of).or_default().add(&totals);
        }
        let sums = sums.into_iter().map(|(of, totals)| Sum { of, totals });
        let mut sums: Vec<Sum> = sums.collect();
        if by != By::Day {
            sums.sort_by_key(|sum| std::cmp::Reverse(sum.totals.cost));
        }
        Ok(sums)
    }

    /// The sums of these days, without the last.
    fn between(&self, from: Day, to: Day) -> Result<Vec<(Key, Totals)>, StoreError> {
        let mut query = self.connection.prepare(&format!(
            "SELECT day, client, provider, model, {} FROM daily WHERE day >= ?1 AND day < ?2",
            SUMS.join(", ")
        ))?;
        let rows = query.query_map([from.number(), to.number()], |row| {
            let key = Key {
                day: Day::new(row.get(0)?),
                client: row.get(1)?,
                provider: row.get::<_, String>(2)?.into(),
                model: row.get::<_, String>(3)?.into(),
            };
            Ok((key, totals(row, 4)?))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The last requests since this day, the latest first.
    pub(crate) fn requests(&self, since: Day, most: u32) -> Result<Vec<RequestRow>, StoreError> {
        let mut query = self.connection.prepare(
            "SELECT * FROM request WHERE at_ms >= ?1 ORDER BY at_ms DESC, rowid DESC LIMIT ?2",
        )?;
        let since = signed(milliseconds(since.start()));
        let rows = query.query_map(params![since, most], |row| {
            let count = |at: usize| row.get::<_, i64>(at).map(unsigned);
            Ok(RequestRow {
                at_ms: count(0)?,
                client: row.get(1)?,
                provider: row.get(2)?,
                model: row.get(3)?,
                cached: row.get(4)?,
                estimated: row.get(5)?,
                tokens: usage(row, 6)?,
                cost: row
                    .get::<_, Option<i64>>(11)?
                    .map(|cost| NanoUsd::new(unsigned(cost))),
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    #[cfg(test)]
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }
}

/// Whether SQLite could not make its files beside the database.
fn is_denied(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::CannotOpen
                | ErrorCode::ReadOnly
                | ErrorCode::PermissionDenied
                | ErrorCode::SystemIoFailure
                | ErrorCode::DiskFull
        )
    )
}

fn has_log(path: &Path) -> bool {
    fs::metadata(beside(path, "-wal")).is_ok_and(|log| log.len() > 0)
}

/// The database as SQLite opens it without files beside it: <https://www.sqlite.org/uri.html>.
fn immutable(path: &Path) -> String {
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'-' | b'.' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => {
                uri.push(char::from(*byte));
            }
            _ => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri.push_str("?immutable=1");
    uri
}

/// One of the files beside a database.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn id(metadata: &Metadata) -> FileId {
    (metadata.dev(), metadata.ino())
}

/// The file that has this name now, if one has.
pub(super) fn file_at(path: &Path) -> Option<FileId> {
    fs::metadata(path).ok().as_ref().map(id)
}

/// Renames a broken database, with its other files, to a name that says so.
pub(super) fn put_aside(path: &Path) -> io::Result<PathBuf> {
    if !fs::symlink_metadata(path)?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let now = milliseconds(SystemTime::now());
    let aside = beside(path, &format!(".corrupt-{now}"));
    fs::rename(path, &aside)?;
    for other in ["-wal", "-shm"] {
        // They need not be there; with another database they would do harm.
        let _ = fs::rename(beside(path, other), beside(&aside, other));
    }
    Ok(aside)
}

fn totals(row: &Row<'_>, at: usize) -> rusqlite::Result<Totals> {
    let count = |place: usize| row.get::<_, i64>(at + place).map(unsigned);
    Ok(Totals {
        requests: count(0)?,
        cached: count(1)?,
        unpriced: count(2)?,
        estimated: count(3)?,
        tokens: usage(row, at + 4)?,
        cost: NanoUsd::new(count(9)?),
    })
}

fn usage(row: &Row<'_>, at: usize) -> rusqlite::Result<Usage> {
    let count = |place: usize| row.get::<_, i64>(at + place).map(unsigned);
    Ok(Usage {
        input_tokens: count(0)?,
        output_tokens: count(1)?,
        cached_input_tokens: count(2)?,
        cache_write_tokens: count(3)?,
        reasoning_tokens: count(4)?,
    })
}

fn milliseconds(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// SQLite has signed numbers only.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}
