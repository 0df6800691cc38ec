//! Arguments of a function call that come in pieces, each with the place where it belongs.
//!
//! Vertex sends them so where it is asked for it: `{"jsonPath":"$.city","stringValue":"Par","willContinue":true}`. The model
//! writes from left to right, so the pieces come in the order of the JSON text, and become that text as they come.
//! Source: <https://cloud.google.com/vertex-ai/generative-ai/docs/multimodal/function-calling#streaming-fc>,
//! paths as in [RFC 9535](https://www.rfc-editor.org/rfc/rfc9535).

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::ProviderError;
use crate::wire::error::malformed;
use crate::wire::json::cow;

/// A piece: a value, or a part of a text.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Piece<'a> {
    #[serde(borrow)]
    json_path: Option<&'a RawValue>,
    #[serde(borrow)]
    string_value: Option<&'a RawValue>,
    #[serde(borrow)]
    number_value: Option<&'a RawValue>,
    bool_value: Option<bool>,
    /// More of this text follows.
    will_continue: Option<bool>,
}

/// How far the JSON text of one call's arguments has been written.
#[derive(Default)]
pub(super) struct Arguments {
    /// The path of the last value, and its steps. Whatever holds it is still open.
    path: String,
    place: Vec<Step<'static>>,
    /// The last value is a text that has no end yet.
    in_text: bool,
}

/// One step down from an object or an array.
#[derive(PartialEq)]
enum Step<'a> {
    Key(Cow<'a, str>),
    Index(usize),
}

impl Step<'_> {
    fn opening(&self) -> char {
        match self {
            Self::Key(_) => '{',
            Self::Index(_) => '[',
        }
    }

    fn closing(&self) -> char {
        match self {
            Self::Key(_) => '}',
            Self::Index(_) => ']',
        }
    }

    fn into_owned(self) -> Step<'static> {
        match self {
            Self::Key(key) => Step::Key(Cow::Owned(key.into_owned())),
            Self::Index(index) => Step::Index(index),
        }
    }
}

impl Arguments {
    /// Appends to `json` what `piece` adds to the text.
    pub(super) fn write(
        &mut self,
        piece: &Piece<'_>,
        json: &mut String,
    ) -> Result<(), ProviderError> {
        let path = piece.json_path.and_then(cow).unwrap_or_default();
        let text = piece.string_value.and_then(|raw| {
            // Its escapes are those of the text that is written.
            raw.get().strip_prefix('"')?.strip_suffix('"')
        });
        let more = text.is_some() && piece.will_continue == Some(true);
        if self.in_text && self.path == path {
            json.push_str(text.unwrap_or_default());
            self.in_text = more;
            if !more {
                json.push('"');
            }
            return Ok(());
        }
        self.end_text(json);
        let steps = steps(&path).ok_or_else(|| wrong(&path))?;
        self.go_to(steps, json).ok_or_else(|| wrong(&path))?;
        self.path = path.into();
        match (text, piece.number_value, piece.bool_value) {
            (Some(text), ..) => {
                json.push('"');
                json.push_str(text);
                self.in_text = more;
                if !more {
                    json.push('"');
                }
            }
            (None, Some(number), _) => json.push_str(number.get()),
            (None, None, Some(value)) => json.push_str(if value { "true" } else { "false" }),
            // `nullValue`, which looks as if it were absent.
            (None, None, None) => json.push_str("null"),
        }
        Ok(())
    }

    /// Appends the end of the text.
    pub(super) fn end(mut self, json: &mut String) {
        self.end_text(json);
        if self.place.is_empty() {
            json.push_str("{}");
        }
        json.extend(self.place.iter().rev().map(Step::closing));
    }

    fn end_text(&mut self, json: &mut String) {
        if self.in_text {
            json.push('"');
            self.in_text = false;
        }
    }

    /// Closes what is left and opens what is entered. `None`: nobody who writes from left to right gets there.
    fn go_to(&mut self, steps: Vec<Step<'_>>, json: &mut String) -> Option<()> {
        let common = self.place.iter().zip(&steps);
        let common = common.take_while(|(old, new)| old == new).count();
        let begun = !self.place.is_empty();
        if begun {
            // Neither the same value again, nor a value within another.
            let old = self.place.get(common)?;
            match (old, steps.get(common)?) {
                (Step::Key(_), Step::Key(_)) => {}
                (Step::Index(old), Step::Index(new)) if *new == old + 1 => {}
                _ => return None,
            }
            json.extend(self.place[common + 1..].iter().rev().map(Step::closing));
            json.push(',');
            self.place.truncate(common);
        }
        for step in steps.into_iter().skip(common) {
            let first = !begun || self.place.len() > common;
            if first {
                json.push(step.opening());
            }
            match &step {
                Step::Key(key) => {
                    json.push_str(&serde_json::Value::from(&**key).to_string());
                    json.push(':');
                }
                Step::Index(index) if first && *index > 0 => return None,
                Step::Index(_) => {}
            }
            self.place.push(step.into_owned());
        }
        Some(())
    }
}

/// The steps of `$.a.b[0]['c']`. `None` where that is no path to one argument.
fn steps(path: &str) -> Option<Vec<Step<'_>>> {
    let mut rest = path.strip_prefix('$')?;
    let mut steps = Vec::new();
    while !rest.is_empty() {
        if let Some(name) = rest.strip_prefix('.') {
            let end = name.find(['.', '[']).unwrap_or(name.len());
            steps.push(Step::Key(Cow::Borrowed(&name[..end])));
            rest = &name[end..];
        } else {
            let inside = rest.strip_prefix('[')?;
            let step;
            (step, rest) = match inside.chars().next()? {
                quote @ ('\'' | '"') => quoted(&inside[1..], quote)?,
                _ => {
                    let (index, rest) = inside.split_once(']')?;
                    (Step::Index(index.parse().ok()?), rest)
                }
            };
            steps.push(step);
        }
    }
    // The arguments themselves are always an object.
    matches!(steps.first(), Some(Step::Key(_))).then_some(steps)
}

/// The key up to the closing `quote` and bracket, and what comes after.
fn quoted(text: &str, quote: char) -> Option<(Step<'_>, &str)> {
    let mut key = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => key.push(characters.next()?.1),
            _ if character == quote => {
                let rest = text[at + 1..].strip_prefix(']')?;
                return Some((Step::Key(Cow::Owned(key)), rest));
            }
            _ => key.push(character),
        }
    }
    None
}

fn wrong(path: &str) -> ProviderError {
    malformed(format!(
        "a function call's arguments come in no order of theirs, at `{path}`"
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn written(pieces: &[Value]) -> Result<String, String> {
        let (mut arguments, mut json) = (Arguments::default(), String::new());
        for piece in pieces {
            let piece = piece.to_string();
            let piece: Piece<'_> = serde_json::from_str(&piece).unwrap();
            arguments
                .write(&piece, &mut json)
                .map_err(|error| error.message.to_string())?;
        }
        arguments.end(&mut json);
        Ok(json)
    }

    #[test]
    fn pieces_become_the_text() {
        let json = written(&[
            json!({"jsonPath": "$.s", "stringValue": "a\"b", "willContinue": true}),
            json!({"jsonPath": "$.s", "stringValue": "\nc", "willContinue": true}),
            json!({"jsonPath": "$.s", "stringValue": ""}),
            json!({"jsonPath": "$.o.list[0].x", "numberValue": 0.5}),
            json!({"jsonPath": "$.o.list[0].y", "boolValue": true}),
            json!({"jsonPath": "$.o.list[1].x", "nullValue": "NULL_VALUE"}),
            json!({"jsonPath": "$.o.list[2][0]", "numberValue": 1}),
            json!({"jsonPath": "$.o.list[2][1]", "numberValue": 2}),
            json!({"jsonPath": "$['odd \\' key']", "stringValue": "whole"}),
            json!({"jsonPath": "$.open", "stringValue": "cut", "willContinue": true}),
        ]);
        assert_eq!(
            json.unwrap(),
            r#"{"s":"a\"b\nc","o":{"list":[{"x":0.5,"y":true},{"x":null},[1,2]]},"odd ' key":"whole","open":"cut"}"#
        );
        assert_eq!(written(&[]).unwrap(), "{}");
    }

    #[test]
    fn a_text_may_be_left_without_its_end() {
        let json = written(&[
            json!({"jsonPath": "$.a", "stringValue": "x", "willContinue": true}),
            json!({"jsonPath": "$.b", "stringValue": "y"}),
        ]);
        assert_eq!(json.unwrap(), r#"{"a":"x","b":"y"}"#);
    }

    #[test]
    fn places_that_cannot_be_written_any_more_are_faults() {
        for pieces in [
            &["$"][..],
            &["a"],
            &["$[0]"],
            &["$.a[1]"],
            &["$.a[-1]"],
            &["$.a[18446744073709551616]"],
            &["$.a["],
            &["$['a"],
            &["$.a", "$.a"],
            &["$.a", "$.a.b"],
            &["$.a.b", "$.a"],
            &["$.a[0]", "$.a[2]"],
            &["$.a[1]", "$.a[0]"],
            &["$.a[0]", "$.a.b"],
        ] {
            let pieces: Vec<_> = pieces
                .iter()
                .map(|path| json!({"jsonPath": path, "numberValue": 1}))
                .collect();
            assert!(written(&pieces).is_err(), "{pieces:?}");
        }
        assert!(written(&[json!({"numberValue": 1})]).is_err());
    }

    proptest! {
        /// Whatever is not refused becomes JSON.
        #[test]
        fn any_pieces(
            pieces in prop::collection::vec(
                ("\\$(\\.[ab]|\\[[0-2]\\]|\\['[^\r]'\\]|[$.\\[\\]'x\\\\]){0,4}", any::<bool>(), any::<bool>()),
                0..6,
            ),
        ) {
            let pieces: Vec<_> = pieces
                .into_iter()
                .map(|(path, text, more)| match text {
                    true => json!({"jsonPath": path, "stringValue": "\"x", "willContinue": more}),
                    false => json!({"jsonPath": path, "numberValue": -1.5}),
                })
                .collect();
            if let Ok(json) = written(&pieces) {
                prop_assert!(serde_json::from_str::<Value>(&json).is_ok(), "{json}");
            }
        }
    }
}
