//! The prompt of a command.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;

use crate::failure::Failure;

/// The prompt: the arguments, and what is piped in.
pub(super) fn read(prompt: &[String]) -> Result<String, Failure> {
    let stdin = io::stdin();
    let dash = prompt.iter().any(|word| word == "-");
    let words: Vec<&str> = prompt
        .iter()
        .map(String::as_str)
        .filter(|word| *word != "-")
        .collect();
    let mut text = words.join(" ");
    // Beside a prompt only a pipe or a file is read, to its end: a terminal, a socket or /dev/null is not meant.
    if dash || (text.is_empty() && !stdin.is_terminal()) || is_piped(&stdin) {
        let mut piped = String::new();
        stdin.lock().read_to_string(&mut piped).map_err(|error| {
            Failure::Usage(format!(
                "cannot read the prompt from standard input: {error}"
            ))
        })?;
        if !text.is_empty() && !piped.trim().is_empty() {
            text.push_str("\n\n");
        }
        text.push_str(piped.trim_end());
    }
    if text.trim().is_empty() {
        let usage = "there is no prompt: write it behind the command, or pipe one in";
        return Err(Failure::Usage(usage.to_owned()));
    }
    Ok(text)
}

fn is_piped(stdin: &impl AsFd) -> bool {
    let meta = stdin
        .as_fd()
        .try_clone_to_owned()
        .map(File::from)
        .and_then(|file| file.metadata());
    meta.is_ok_and(|meta| meta.file_type().is_fifo() || meta.is_file())
}
