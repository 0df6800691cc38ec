use super::*;

#[test]
fn absent_fields_are_left_out_and_unknown_ones_ignored() {
    let json = r#"{"messages":[{"role":"tool","content":[{"type":"text","text":"4"}],"toolCallId":"c1","new":1}],
        "model":"m","maxTokens":5,"toolChoice":{"name":"add"},"later":{}}"#;
    let request: AIRequest = serde_json::from_str(json).unwrap();
    assert_eq!(
        request.tool_choice,
        Some(ToolChoice::Named {
            name: "add".to_owned()
        })
    );
    assert_eq!(
        serde_json::to_string(&request).unwrap(),
        r#"{"messages":[{"role":"tool","content":[{"type":"text","text":"4"}],"toolCallId":"c1"}],"model":"m","maxTokens":5,"toolChoice":{"name":"add"}}"#
    );
    let auto: AIRequest =
        serde_json::from_str(r#"{"messages":[],"model":"","toolChoice":"required"}"#).unwrap();
    assert_eq!(auto.tool_choice, Some(ToolChoice::Required));
}

#[test]
fn events_start_with_their_type() {
    let event = StreamEvent::ToolCall {
        index: 1,
        id: None,
        name: None,
        arguments: Some("{}".to_owned()),
        signature: None,
    };
    let json = serde_json::to_string(&event).unwrap();
    assert_eq!(json, r#"{"type":"toolCall","index":1,"arguments":"{}"}"#);
    let usage = StreamEvent::Usage(Usage {
        input_tokens: 3,
        ..Usage::default()
    });
    let json = serde_json::to_string(&usage).unwrap();
    assert_eq!(json, r#"{"type":"usage","inputTokens":3,"outputTokens":0}"#);
    assert_eq!(serde_json::from_str::<StreamEvent>(&json).unwrap(), usage);
    assert_eq!(
        serde_json::from_str::<StreamEvent>(r#"{"type":"hologram","x":1}"#).unwrap(),
        StreamEvent::Unknown
    );
    assert_eq!(
        serde_json::from_str::<StreamEvent>(r#"{"type":"finish","reason":"boredom"}"#).unwrap(),
        StreamEvent::Finish {
            reason: FinishReason::Other,
            attempts: Vec::new(),
            cost_nano_usd: None,
            cached: false,
            warnings: Vec::new(),
        }
    );
}
