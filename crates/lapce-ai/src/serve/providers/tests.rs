use super::*;
use crate::config::Sources;

fn config(text: &str) -> (tempfile::TempDir, Config) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("c.toml");
    std::fs::write(&file, format!("{text}\n[discovery]\nloopback = false\n")).unwrap();
    let config = Config::load(&Sources {
        file: Some(file),
        ..Sources::default()
    })
    .unwrap();
    (directory, config)
}

async fn gather(text: &str, environment: &[(&str, &str)]) -> Providers {
    let (_directory, config) = config(text);
    Providers::gather(&config, |name| {
        environment
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| (*value).to_owned())
    })
    .await
}

fn names(providers: &Providers) -> Vec<(&str, &str)> {
    providers
        .about()
        .iter()
        .map(|about| (about.name.as_str(), about.source.as_str()))
        .collect()
}

#[tokio::test]
async fn without_anything_there_is_local() {
    let providers = gather("", &[]).await;
    assert_eq!(names(&providers), [("local", "built in")]);
    assert_eq!(providers.default_model(), Some("local/local"));
    assert_eq!(providers.resolve("").unwrap().name, "local");
    assert!(providers.problems().is_empty());
}

#[tokio::test]
async fn configured_ones_come_first_and_are_not_doubled() {
    let text = "[providers.mine]\ntype = 'openai'\nbase_url = 'http://127.0.0.1:1/v1'\n[providers.groq]\ndefault_model = 'x'\n[providers.local]\ntokens = 3";
    let providers = gather(text, &[("GROQ_API_KEY", "k"), ("OPENAI_API_KEY", "k")]).await;
    let expected = [
        ("mine", "configuration"),
        ("groq", "configuration"),
        ("local", "configuration"),
        ("openai", "environment"),
    ];
    assert_eq!(names(&providers), expected);
    assert_eq!(providers.default_model(), Some("groq/x"));
    assert_eq!(providers.resolve("openai").unwrap().model, "gpt-4o-mini");
}

#[tokio::test]
async fn a_configured_default_wins_and_a_wrong_one_is_told() {
    let providers = gather(
        "[requests]\ndefault_model = 'local'",
        &[("OPENAI_API_KEY", "k")],
    )
    .await;
    assert_eq!(providers.resolve("").unwrap().name, "local");
    let providers = gather("[requests]\ndefault_model = 'nobody/x'", &[]).await;
    assert_eq!(
        providers.problems(),
        ["requests.default_model: no provider or model is called `nobody/x`"]
    );
    assert!(providers.resolve("").is_err());
}

#[tokio::test]
async fn a_provider_that_will_not_do_says_why_when_it_is_asked() {
    let text = "[providers.groq]\napi_key_env = 'NO_SUCH_KEY'\n[providers.mine]\ntype = 'openai'\nbase_url = 'no address'";
    let providers = gather(text, &[]).await;
    assert_eq!(providers.problems().len(), 2, "{:?}", providers.problems());
    assert_eq!(providers.default_model(), Some("local/local"));
    let route = providers.resolve("groq/x").unwrap();
    let error = route
        .provider
        .chat(&ChatRequest::new("x"))
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("NO_SUCH_KEY (api_key_env) is not set"),
        "{error}"
    );
}

#[tokio::test]
async fn a_provider_without_a_default_model_is_told_of() {
    let providers = gather("", &[("TOGETHER_API_KEY", "k")]).await;
    assert_eq!(providers.default_model(), Some("local/local"));
    assert!(
        providers.problems()[0].starts_with("together has no default model"),
        "{:?}",
        providers.problems()
    );
}
