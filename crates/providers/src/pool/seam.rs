//! Where one part of an answer ends and the next begins: what the next one repeats of the end is left out.
//!
//! Only a word for word repetition is: whatever else would be guessing. And only one that is too long to be chance, since
//! "ha" after "ha" may be a laugh, and a line may begin with the same blanks as the one before.

/// How far back a repetition may begin, in bytes.
const FARTHEST: usize = 4096;
/// The shortest repetition that is believed, in bytes, and how many letters and digits must be in it.
const SHORTEST: usize = 16;
const FEWEST_LETTERS: usize = 8;

/// The beginning of the next part, held back until it is clear how much of it was said before.
#[derive(Debug, Default)]
pub(super) struct Seam {
    held: String,
}

impl Seam {
    /// Whether nothing is held back.
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Takes more of the next part. Once it is clear what is new, that.
    pub(super) fn push(&mut self, said: &str, text: &str) -> Option<String> {
        self.held.push_str(text);
        let (repeated, may_grow) = repetition(said, &self.held);
        (!may_grow).then(|| self.held.split_off(repeated))
    }

    /// Nothing more comes: what is new.
    pub(super) fn end(mut self, said: &str) -> String {
        let (repeated, _) = repetition(said, &self.held);
        self.held.split_off(repeated)
    }
}

/// How many bytes of `next` repeat the end of `said`, and whether with more of `next` it may turn out to be more.
fn repetition(said: &str, next: &str) -> (usize, bool) {
    let mut from = said.len().saturating_sub(FARTHEST);
    while !said.is_char_boundary(from) {
        from += 1;
    }
    let tail = &said[from..];
    let (mut repeated, mut may_grow) = (0, false);
    for (at, _) in tail.char_indices() {
        let end = &tail[at..];
        if end.len() < SHORTEST {
            break;
        }
        if next.len() < end.len() {
            may_grow |= end.starts_with(next);
        } else if repeated == 0 && next.starts_with(end) && is_telling(end) {
            // The longest comes first.
            repeated = end.len();
        }
    }
    (repeated, may_grow)
}

fn is_telling(text: &str) -> bool {
    text.chars().filter(|char| char.is_alphanumeric()).count() >= FEWEST_LETTERS
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is new in `next`, which comes in pieces of so many bytes at least.
    fn joined(said: &str, next: &str, size: usize) -> String {
        let mut seam = Seam::default();
        let mut new: Option<String> = None;
        let mut rest = next;
        while !rest.is_empty() {
            let mut cut = size.min(rest.len());
            while !rest.is_char_boundary(cut) {
                cut += 1;
            }
            let (piece, left) = rest.split_at(cut);
            rest = left;
            match &mut new {
                Some(new) => new.push_str(piece),
                None => new = seam.push(said, piece),
            }
        }
        new.unwrap_or_else(|| seam.end(said))
    }

    #[test]
    fn an_exact_repetition_is_left_out_however_it_comes() {
        let said = "Once upon a time there was a crab, and it was called Ferris. Ünglaublich!";
        for (next, new) in [
            (" And so on.", " And so on."),
            ("Ferris. Ünglaublich! And so on.", " And so on."),
            // From the very beginning.
            (
                "Once upon a time there was a crab, and it was called Ferris. Ünglaublich! So.",
                " So.",
            ),
            // Begun anew, but not to its end: these are other words, and they stand.
            (
                "Once upon a time there was a lobster.",
                "Once upon a time there was a lobster.",
            ),
            // Almost.
            ("ferris. Ünglaublich! So.", "ferris. Ünglaublich! So."),
            // Too short to be sure.
            ("Ünglaublich!", "Ünglaublich!"),
            ("", ""),
        ] {
            for size in [1, 2, 5, 1000] {
                assert_eq!(joined(said, next, size), new, "{next:?} by {size}");
            }
        }
    }

    #[test]
    fn what_may_be_chance_stays() {
        let blanks = "fn main() {\n                    ";
        assert_eq!(
            joined(blanks, "                    x();", 3),
            "                    x();"
        );
        let rule = "a table\n--------------------";
        assert_eq!(
            joined(rule, "--------------------|", 4),
            "--------------------|"
        );
        assert_eq!(joined("ha", "ha", 1), "ha");
        assert_eq!(
            joined("", "anything at all, however long", 4),
            "anything at all, however long"
        );
    }

    #[test]
    fn nothing_is_held_back_that_is_clear() {
        let mut seam = Seam::default();
        let said = "The quick brown fox jumps over the lazy dog";
        assert_eq!(seam.push(said, "quick brown"), None);
        assert_eq!(seam.push(said, " cat"), Some("quick brown cat".to_owned()));
        let mut seam = Seam::default();
        assert_eq!(seam.push(said, ","), Some(",".to_owned()), "at once");
        // A long answer costs no more than its end.
        let long = "x1".repeat(1 << 19);
        let mut seam = Seam::default();
        assert_eq!(seam.push(&long, "y"), Some("y".to_owned()));
    }
}
