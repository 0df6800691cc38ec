//! `lapce-ai chat`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use lapce_ai_client::{Client, ClientError, MessageType, RequestOptions};
use lapce_ai_proto::ai::{
    AIRequest, AIResponse, Citation, Content, FinishReason, Message, Part, ResponseFormat,
    StreamEvent, ToolCall,
};

use super::{image, or_interrupted, prompt};
use crate::cli::{ChatArgs, Global};
use crate::config::Config;
use crate::failure::Failure;
use crate::launch;
use crate::output::{Output, note};

pub(crate) fn run(config: &Config, global: &Global, args: &ChatArgs) -> Result<(), Failure> {
    let request = request(args)?;
    super::run(async {
        let client = or_interrupted(launch::connect_or_start(config, global)).await?;
        let mut printer = Printer::new(Output::stdout());
        let outcome = or_interrupted(ask(&client, &request, args, &mut printer)).await;
        // An interrupted request was dropped with its future, and the hang-up cancels it.
        client.close().await;
        let ended = printer.out.end_line();
        outcome?;
        Ok(ended?)
    })
}

fn request(args: &ChatArgs) -> Result<AIRequest, Failure> {
    let text = prompt::read(&args.prompt)?;
    let images = args.image.iter().map(|image| image::part(image));
    let mut parts = images.collect::<Result<Vec<_>, _>>()?;
    let content = if parts.is_empty() {
        Content::Text(text)
    } else {
        parts.push(Part::Text {
            text,
            cache_control: None,
        });
        Content::Parts(parts)
    };
    let message = Message {
        content,
        ..Message::user("")
    };
    Ok(AIRequest {
        system_prompt: args.system.clone(),
        max_tokens: args.max_tokens,
        temperature: args.temperature,
        stream: args.no_stream.then_some(false),
        reasoning: args.reasoning,
        response_format: args.schema.as_deref().map(schema).transpose()?,
        ..AIRequest::new(args.model.clone().unwrap_or_default(), vec![message])
    })
}

/// An answer that fits the schema in the file `path`.
fn schema(path: &Path) -> Result<ResponseFormat, Failure> {
    let wrong = |why: String| {
        let path = path.display();
        Failure::Usage(format!("--schema {path}: {why}"))
    };
    let text = fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let schema = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
    Ok(ResponseFormat::JsonSchema {
        name: "answer".to_owned(),
        schema,
        strict: Some(true),
    })
}

async fn ask<W: Write>(
    client: &Client,
    request: &AIRequest,
    args: &ChatArgs,
    printer: &mut Printer<W>,
) -> Result<(), Failure> {
    let body = serde_json::to_vec(request).map_err(ClientError::from)?;
    let options = RequestOptions {
        deadline: args.deadline,
        ..RequestOptions::default()
    };
    let mut items = client.stream(MessageType::CHAT, &body, &options).await?;
    let mut item = Vec::new();
    while items.next_into(&mut item).await? {
        if args.json {
            printer.out.raw_line(&item)?;
        } else if args.no_stream {
            printer.response(serde_json::from_slice(&item).map_err(ClientError::from)?)?;
        } else {
            printer.event(serde_json::from_slice(&item).map_err(ClientError::from)?)?;
        }
    }
    Ok(())
}

/// An answer as a person reads it.
struct Printer<W> {
    out: Output<W>,
    calls: BTreeMap<u32, (String, String)>,
    citations: Vec<Citation>,
}

impl<W: Write> Printer<W> {
    fn new(out: Output<W>) -> Self {
        Self {
            out,
            calls: BTreeMap::new(),
            citations: Vec::new(),
        }
    }

    fn event(&mut self, event: StreamEvent) -> io::Result<()> {
        match event {
            StreamEvent::Text { text } => self.out.text(&text)?,
            StreamEvent::Reasoning { text, .. } => self.reasoning(&text)?,
            StreamEvent::ToolCall {
                index,
                name,
                arguments,
                ..
            } => {
                let (known, joined) = self.calls.entry(index).or_default();
                known.push_str(&name.unwrap_or_default());
                joined.push_str(&arguments.unwrap_or_default());
            }
            StreamEvent::Citation(citation) => self.citations.push(citation),
            StreamEvent::Continued {
                provider, model, ..
            } => {
                note(&format!(
                    "lapce-ai: the answer broke off; {provider}/{model} goes on with it"
                ));
            }
            StreamEvent::Finish { reason, .. } => self.finish(reason)?,
            StreamEvent::Start { .. }
            | StreamEvent::RedactedReasoning { .. }
            | StreamEvent::Usage(_)
            | StreamEvent::Unknown => {}
        }
        Ok(())
    }

    fn response(&mut self, response: AIResponse) -> io::Result<()> {
        if let Some(reasoning) = &response.reasoning {
            self.reasoning(reasoning)?;
            self.out.end_line()?;
        }
        self.out.text(&response.content)?;
        let calls = response.tool_calls.unwrap_or_default().into_iter();
        let call = |ToolCall {
                        name, parameters, ..
                    }| (name, parameters.to_string());
        self.calls = (0..).zip(calls.map(call)).collect();
        self.citations = response.citations.unwrap_or_default();
        self.finish(response.finish_reason)
    }

    /// The thinking is not the answer: whoever pipes the answer on does not want it there.
    fn reasoning(&mut self, text: &str) -> io::Result<()> {
        if self.out.is_terminal() {
            self.out.dimmed(text)
        } else {
            Ok(())
        }
    }

    fn finish(&mut self, reason: FinishReason) -> io::Result<()> {
        self.out.end_line()?;
        for (name, arguments) in std::mem::take(&mut self.calls).into_values() {
            self.out
                .line(&format!("[the model calls {name} {arguments}]"))?;
        }
        for (at, citation) in std::mem::take(&mut self.citations).into_iter().enumerate() {
            let Citation { url, title, quote } = citation;
            let quote = quote.map(|quote| format!("\"{quote}\""));
            // Where there is an address, the words are there to be read.
            let parts = [title, url.or(quote)].into_iter().flatten();
            let source = parts.collect::<Vec<_>>().join(" ");
            self.out.line(&format!("[{}] {source}", at + 1))?;
        }
        match reason {
            FinishReason::Length => {
                note("lapce-ai: the answer was cut at the longest length allowed (--max-tokens)");
            }
            FinishReason::ContentFilter => {
                note("lapce-ai: the provider's content filter held the rest back");
            }
            FinishReason::Stop
            | FinishReason::ToolCalls
            | FinishReason::Refusal
            | FinishReason::Other => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(terminal: bool, events: &[&str]) -> String {
        let mut bytes = Vec::new();
        let mut printer = Printer::new(Output::new(&mut bytes, terminal));
        for event in events {
            printer.event(serde_json::from_str(event).unwrap()).unwrap();
        }
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn an_answer_reads_like_text() {
        let events = [
            r#"{"type":"start","provider":"local","model":"local"}"#,
            r#"{"type":"reasoning","text":"hm"}"#,
            r#"{"type":"text","text":"It "}"#,
            r#"{"type":"text","text":"works."}"#,
            r#"{"type":"hologram"}"#,
            r#"{"type":"toolCall","index":0,"id":"1","name":"add","arguments":"{\"a\":"}"#,
            r#"{"type":"toolCall","index":0,"arguments":"1}"}"#,
            r#"{"type":"citation","url":"https://example.com","title":"Example"}"#,
            r#"{"type":"finish","reason":"toolCalls"}"#,
        ];
        let answer =
            "It works.\n[the model calls add {\"a\":1}]\n[1] Example https://example.com\n";
        assert_eq!(printed(false, &events), answer);
        assert_eq!(printed(true, &events), format!("\x1b[2mhm\x1b[0m{answer}"));
    }

    #[test]
    fn a_whole_answer_reads_the_same() {
        let mut bytes = Vec::new();
        let mut printer = Printer::new(Output::new(&mut bytes, false));
        let response = r#"{"model":"m","provider":"p","content":"Hi","toolCalls":[{"id":"1","name":"f","parameters":{}}],"finishReason":"stop"}"#;
        printer
            .response(serde_json::from_str(response).unwrap())
            .unwrap();
        assert_eq!(
            String::from_utf8(bytes).unwrap(),
            "Hi\n[the model calls f {}]\n"
        );
    }
}
