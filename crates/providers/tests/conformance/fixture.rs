//! Reads a fixture. The format is described in `tests/fixtures/README.md`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// One request and its answer.
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    /// Where it begins in the file, for people.
    pub line: usize,
    pub ask: String,
    pub options: BTreeMap<String, String>,
    pub sends: Option<Sends>,
    pub answer: Option<Answer>,
    pub gives: Vec<String>,
}

/// The request that must be sent.
#[derive(Debug, Default)]
pub(crate) struct Sends {
    pub method: String,
    pub url: String,
    /// Names in lower case; `None`: must not be there.
    pub headers: Vec<(String, Option<String>)>,
    pub body: String,
}

/// What the provider answers.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub status: u16,
    pub media_type: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
    /// The connection ends without the body's proper end.
    pub cut: bool,
}

/// Reads the fixture `path` (`<profile>/<feature>`) below `root`, with what it is like.
pub(crate) fn read(root: &Path, path: &str) -> Result<Vec<Exchange>, String> {
    let text = fs::read_to_string(root.join(path).with_extension("txt"))
        .map_err(|error| format!("{path}: {error}"))?;
    let mut source = false;
    let mut like = None;
    let mut replacements = Vec::new();
    let mut lines = text.lines().enumerate().peekable();
    while let Some((_, line)) = lines.next_if(|(_, line)| !line.starts_with("== ")) {
        if let Some(comment) = line.strip_prefix('#') {
            source |= comment.contains("https://");
        } else if let Some(other) = line.strip_prefix("like ") {
            like = Some(other.trim().to_owned());
        } else if let Some(rule) = line.strip_prefix("with ") {
            let (old, new) = rule
                .split_once(" => ")
                .ok_or(format!("{path}: `{line}` has no ` => `"))?;
            replacements.push((old.to_owned(), new.to_owned()));
        } else if !line.trim().is_empty() {
            return Err(format!("{path}: `{line}` is nothing that a fixture has"));
        }
    }
    if !source {
        return Err(format!("{path}: its source is not named"));
    }
    let mut exchanges = Vec::new();
    if let Some(other) = like {
        let mut text = fs::read_to_string(root.join(&other).with_extension("txt"))
            .map_err(|error| format!("{path}: like {other}: {error}"))?;
        for (old, new) in &replacements {
            if !text.contains(old.as_str()) {
                return Err(format!("{path}: `{old}` is not in {other}"));
            }
            text = text.replace(old, new);
        }
        let start = text
            .lines()
            .position(|line| line.starts_with("== "))
            .ok_or(format!("{path}: {other} has no exchanges of its own"))?;
        parse(path, text.lines().enumerate().skip(start), &mut exchanges)?;
    } else if !replacements.is_empty() {
        return Err(format!("{path}: `with` without `like`"));
    }
    parse(path, lines, &mut exchanges)?;
    if exchanges.is_empty() {
        return Err(format!("{path}: no exchange"));
    }
    Ok(exchanges)
}

fn parse<'a>(
    path: &str,
    lines: impl Iterator<Item = (usize, &'a str)>,
    exchanges: &mut Vec<Exchange>,
) -> Result<(), String> {
    // The lines of the section at hand.
    enum Section {
        Sends,
        Answer,
        Gives,
        None,
    }
    let mut section = Section::None;
    let mut head = true;
    for (number, line) in lines {
        let wrong = |why: &str| format!("{path}:{}: {why}: `{line}`", number + 1);
        if let Some(rest) = line.strip_prefix("== ") {
            let mut words = rest.split_whitespace();
            let kind = words.next().unwrap_or("");
            if kind == "ask" {
                let mut exchange = Exchange {
                    line: number + 1,
                    ask: words.next().ok_or(wrong("nothing is asked"))?.into(),
                    ..Exchange::default()
                };
                for option in words {
                    let (name, value) = option.split_once('=').ok_or(wrong("no option"))?;
                    exchange.options.insert(name.into(), value.into());
                }
                exchanges.push(exchange);
                section = Section::None;
                continue;
            }
            let exchange = exchanges.last_mut().ok_or(wrong("before any ask"))?;
            section = match kind {
                "sends" => {
                    exchange.sends = Some(Sends::default());
                    head = true;
                    Section::Sends
                }
                "answer" => {
                    let mut answer = Answer {
                        status: words
                            .next()
                            .and_then(|status| status.parse().ok())
                            .ok_or(wrong("no status"))?,
                        media_type: words.next().unwrap_or("").into(),
                        ..Answer::default()
                    };
                    for word in words {
                        match word.split_once('=') {
                            Some((name, value)) => {
                                answer
                                    .headers
                                    .push((name.into(), value.replace("%20", " ")));
                            }
                            None if word == "cut" => answer.cut = true,
                            None => return Err(wrong("no header")),
                        }
                    }
                    exchange.answer = Some(answer);
                    Section::Answer
                }
                "gives" => Section::Gives,
                _ => return Err(wrong("no such section")),
            };
            continue;
        }
        let Some(exchange) = exchanges.last_mut() else {
            continue;
        };
        if line.starts_with("# ") && !matches!(section, Section::Answer) {
            continue;
        }
        match (&section, &mut exchange.sends, &mut exchange.answer) {
            (Section::Sends, Some(sends), _) => {
                if sends.method.is_empty() {
                    let (method, url) = line.split_once(' ').ok_or(wrong("no URL"))?;
                    (sends.method, sends.url) = (method.into(), url.trim().into());
                } else if head && line.starts_with('!') {
                    sends.headers.push((line[1..].trim().into(), None));
                } else if head
                    && !line.starts_with(['{', '['])
                    && let Some((name, value)) = line.split_once(": ")
                {
                    sends.headers.push((name.into(), Some(value.into())));
                } else {
                    head = false;
                    sends.body.push_str(line);
                    sends.body.push('\n');
                }
            }
            (Section::Answer, _, Some(answer)) => {
                answer.body.push_str(line);
                answer.body.push('\n');
            }
            (Section::Gives, ..) => {
                if !line.trim().is_empty() {
                    exchange.gives.push(line.trim().into());
                }
            }
            _ if line.trim().is_empty() => {}
            _ => return Err(wrong("belongs to no section")),
        }
    }
    Ok(())
}
