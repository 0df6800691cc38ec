//! Code at a cursor and questions about a file, as chats.

use lapce_ai_proto::ai::{AIRequest, AutocompleteRequest, FileAnalysisRequest, Message};

/// Tokens of a completion at the cursor, unless the request says otherwise.
const COMPLETION_TOKENS: u32 = 256;

const COMPLETE: &str = "You complete code at a cursor. You are given the text before and after it. Answer with the \
    text that belongs at the cursor and nothing else: no explanation, no code fence, nothing of what is already there.";
const ANALYZE: &str = "You answer questions about a file that is given to you.";

/// Code at the cursor as a chat.
pub(in crate::serve) fn autocomplete(request: AutocompleteRequest) -> AIRequest {
    let about = [("File", &request.path), ("Language", &request.language)];
    let mut text: String = about
        .iter()
        .filter_map(|(what, value)| Some(format!("{what}: {}\n", value.as_ref()?)))
        .collect();
    for part in [
        "<before>",
        &request.prefix,
        "</before>\n<after>",
        &request.suffix,
        "</after>",
    ] {
        text.push_str(part);
    }
    AIRequest {
        system_prompt: Some(COMPLETE.to_owned()),
        max_tokens: Some(request.max_tokens.unwrap_or(COMPLETION_TOKENS)),
        temperature: request.temperature,
        stop: request.stop,
        stream: request.stream,
        ..AIRequest::new(request.model.unwrap_or_default(), vec![Message::user(text)])
    }
}

/// A question about a file as a chat.
pub(in crate::serve) fn file_analysis(request: FileAnalysisRequest) -> AIRequest {
    let language = request
        .language
        .map(|language| format!(" ({language})"))
        .unwrap_or_default();
    let text = format!(
        "The file {}{language}:\n<file>\n{}\n</file>\n\n{}",
        request.path, request.content, request.question
    );
    AIRequest {
        system_prompt: Some(ANALYZE.to_owned()),
        max_tokens: request.max_tokens,
        stream: request.stream,
        ..AIRequest::new(request.model.unwrap_or_default(), vec![Message::user(text)])
    }
}

#[cfg(test)]
mod tests {
    use lapce_ai_proto::ai::Content;

    use super::*;

    #[test]
    fn code_and_files_become_chats() {
        let complete = autocomplete(AutocompleteRequest {
            prefix: "fn a() {".into(),
            suffix: "}".into(),
            path: Some("a.rs".into()),
            ..AutocompleteRequest::default()
        });
        let Content::Text(text) = &complete.messages[0].content else {
            panic!()
        };
        assert_eq!(
            text,
            "File: a.rs\n<before>fn a() {</before>\n<after>}</after>"
        );
        assert_eq!(complete.max_tokens, Some(COMPLETION_TOKENS));
        let analysis = file_analysis(FileAnalysisRequest {
            path: "a.rs".into(),
            content: "fn".into(),
            question: "why?".into(),
            language: Some("Rust".into()),
            ..FileAnalysisRequest::default()
        });
        let Content::Text(text) = &analysis.messages[0].content else {
            panic!()
        };
        assert_eq!(text, "The file a.rs (Rust):\n<file>\nfn\n</file>\n\nwhy?");
    }
}
