use super::*;
use crate::config::Sources;

fn config(text: &str) -> (tempfile::TempDir, Config) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("c.toml");
    let discovery = match text.contains("[discovery]") {
        true => "",
        false => "[discovery]",
    };
    std::fs::write(&file, format!("{text}\n{discovery}\nloopback = false\n")).unwrap();
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

/// The first provider and model that are meant.
fn first(providers: &Providers, model: &str) -> (String, String) {
    let target = &providers.plan(model).unwrap().targets[0];
    (target.member.name().to_string(), target.model.to_string())
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
    assert_eq!(first(&providers, "").0, "local");
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
    assert_eq!(first(&providers, "openai").1, "gpt-5.4-mini");
}

#[tokio::test]
async fn a_configured_default_wins_and_a_wrong_one_is_told() {
    let providers = gather(
        "[requests]\ndefault_model = 'local'",
        &[("OPENAI_API_KEY", "k")],
    )
    .await;
    assert_eq!(first(&providers, "").0, "local");
    let providers = gather("[requests]\ndefault_model = 'nobody/x'", &[]).await;
    assert_eq!(
        providers.problems(),
        ["requests.default_model: no provider or model is called `nobody/x`"]
    );
    assert!(providers.plan("").is_err());
}

#[tokio::test]
async fn a_provider_that_will_not_do_says_why_when_it_is_asked() {
    let text = "[providers.groq]\napi_key_env = 'NO_SUCH_KEY'\n[providers.mine]\ntype = 'openai'\nbase_url = 'no address'";
    let providers = gather(text, &[]).await;
    assert_eq!(providers.problems().len(), 2, "{:?}", providers.problems());
    assert_eq!(providers.default_model(), Some("local/local"));
    let plan = providers.plan("groq/x").unwrap();
    let error = plan.targets[0]
        .member
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
async fn azure_takes_its_address_key_and_version_from_its_own_variables() {
    let endpoint = ("AZURE_OPENAI_ENDPOINT", "http://127.0.0.1:1/");
    let key = ("AZURE_OPENAI_API_KEY", "k");
    let found = gather("", &[endpoint, key]).await;
    assert_eq!(names(&found)[0], ("azure", "environment"));
    assert_eq!(
        first(&found, "azure/my-deployment"),
        ("azure".into(), "my-deployment".into())
    );
    // Either alone is of no use to anybody.
    assert_eq!(names(&gather("", &[key]).await), [("local", "built in")]);
    for (text, environment, problem) in [
        ("", &[endpoint, key][..], None),
        ("base_url = 'http://127.0.0.1:1'", &[key], None),
        ("", &[key], Some("AZURE_OPENAI_ENDPOINT")),
        (
            "",
            &[endpoint, key, ("OPENAI_API_VERSION", "2024&x")],
            Some("api_version"),
        ),
        (
            "base_url = 'http://127.0.0.1:1'\napi_version = '2024-10-21'",
            &[key, ("OPENAI_API_VERSION", "2024&x")],
            None,
        ),
    ] {
        let text = format!("[providers.work]\ntype = 'azure'\ndefault_model = 'd'\n{text}");
        let providers = gather(&text, environment).await;
        let problems = providers.problems().join("\n");
        match problem {
            None => assert_eq!(problems, "", "{text}"),
            Some(sign) => assert!(problems.contains(sign), "{text}: {problems}"),
        }
    }
}

#[tokio::test]
async fn bedrock_takes_its_account_and_region_from_aws_itself() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    std::fs::create_dir(home.join(".aws")).unwrap();
    let account = "[work]\naws_access_key_id = AK\naws_secret_access_key = s\nregion = eu-west-1\n";
    std::fs::write(home.join(".aws/credentials"), account).unwrap();
    let home = ("HOME", home.to_str().unwrap());
    let environment = [("AWS_ACCESS_KEY_ID", "AK"), ("AWS_SECRET_ACCESS_KEY", "s")];
    let with_home = |more: &[(&'static str, &'static str)]| [&[home], more].concat();
    for (text, environment, problem) in [
        ("aws_profile = 'work'", with_home(&[]), None),
        ("aws_profile = 'other'", with_home(&[]), Some("`other`")),
        ("", with_home(&[]), Some("no AWS credentials")),
        ("region = 'us-east-1'", with_home(&environment), None),
        (
            "region = 'us-east-1'\n[discovery]\nenvironment = false",
            with_home(&environment),
            Some("no AWS credentials"),
        ),
        (
            "aws_profile = 'work'\n[discovery]\nenvironment = false",
            with_home(&[]),
            None,
        ),
        ("", with_home(&environment), Some("region is missing")),
        (
            "base_url = 'http://127.0.0.1:1'",
            with_home(&environment),
            Some("region is missing"),
        ),
        (
            "",
            with_home(&[environment[0], environment[1], ("AWS_REGION", "us-east-1")]),
            None,
        ),
        (
            "region = 'us-east-1'",
            with_home(&[("AWS_BEARER_TOKEN_BEDROCK", "k")]),
            None,
        ),
        ("region = 'us-east-1'\napi_key = 'k'", with_home(&[]), None),
    ] {
        let providers = gather(&format!("[providers.bedrock]\n{text}"), &environment).await;
        match problem {
            None => assert!(
                providers
                    .problems()
                    .iter()
                    .all(|text| text.contains("default model")),
                "{text}: {:?}",
                providers.problems()
            ),
            Some(sign) => assert!(
                providers.problems()[0].contains(sign),
                "{text}: {:?}",
                providers.problems()
            ),
        }
    }
}

#[tokio::test]
async fn vertex_needs_a_project() {
    let problems = |settings: &'static str,
                    environment: &'static [(&'static str, &'static str)]| async move {
        let text = format!("[providers.vertex]\napi_key = 'ya29.token'\n{settings}");
        gather(&text, environment).await.problems().to_vec()
    };
    let none = Vec::<String>::new();
    assert_eq!(problems("project = 'p1'", &[]).await, none);
    let place = "project = 'p1'\nregion = 'europe-west4'";
    assert_eq!(problems(place, &[]).await, none);
    assert_eq!(problems("", &[("GOOGLE_CLOUD_PROJECT", "p1")]).await, none);
    for (settings, environment, sign) in [
        ("", &[][..], "project is missing"),
        ("project = 'p1'\nregion = 'a/b'", &[], "region"),
        (
            "project = 'p1'",
            &[("GOOGLE_CLOUD_LOCATION", "a/b")],
            "region",
        ),
    ] {
        let problems = problems(settings, environment).await;
        assert!(
            problems.len() == 1 && problems[0].contains("vertex") && problems[0].contains(sign),
            "{settings}: {problems:?}"
        );
    }
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
#[tokio::test]
async fn a_route_is_a_model_s_name_even_the_default_one() {
    let text = "[requests]\ndefault_model = 'best'\n[providers.groq]\n[providers.openai]\n[routes.best]\ntargets = ['nobody/x', 'groq/a', 'local']";
    let providers = gather(text, &[]).await;
    assert_eq!(
        providers.problems(),
        ["routes.best: no provider or model is called `nobody/x`"]
    );
    for name in ["", "BEST"] {
        let plan = providers.plan(name).unwrap();
        let targets = plan.targets.iter();
        let names = targets.map(|target| format!("{}/{}", target.member.name(), target.model));
        assert!(names.eq(["groq/a", "local/local"]));
    }
}

#[tokio::test]
async fn a_type_is_a_profile_wherever_the_server_is() {
    let text = "[providers.mine]\ntype = 'cohere'\nbase_url = 'http://127.0.0.1:1'\n[providers.ollama]\ndefault_model = 'qwen3'";
    let environment = [("CO_API_KEY", "k"), ("OLLAMA_HOST", "127.0.0.1:2")];
    let providers = gather(text, &environment).await;
    assert!(
        providers.problems().is_empty(),
        "{:?}",
        providers.problems()
    );
    let expected = [
        ("mine", "configuration"),
        ("ollama", "configuration"),
        ("cohere", "environment"),
        ("local", "built in"),
    ];
    assert_eq!(names(&providers), expected);
    let url = |name: &str| {
        let mut about = providers.about().iter();
        let found = about.find(|about| about.name == name).unwrap();
        found.base_url.clone()
    };
    assert_eq!(url("mine").as_deref(), Some("http://127.0.0.1:1"));
    assert_eq!(url("ollama").as_deref(), Some("http://127.0.0.1:2"));
    assert_eq!(first(&providers, "mine").1, "command-a-03-2025");
    // Nobody is there; that it is tried shows that the settings will do.
    let plan = providers.plan("ollama").unwrap();
    let request = ChatRequest::new("x").with(lapce_ai_providers::Message::user("x"));
    let error = plan.targets[0].member.chat(&request).await.unwrap_err();
    assert_eq!(
        error.kind,
        lapce_ai_providers::ErrorKind::ConnectionFailed,
        "{error}"
    );
}

#[tokio::test]
async fn the_variable_s_address_tells_what_is_behind_it() {
    let environment = [
        ("OPENAI_API_KEY", "k"),
        ("OPENAI_BASE_URL", "http://127.0.0.1:1/v1"),
    ];
    let compatible = Profile::named("compatible").unwrap();
    // Configured or found, somebody else's server is taken for no more than a compatible one.
    for text in ["", "[providers.openai]\n"] {
        let providers = gather(text, &environment).await;
        let member = &providers.plan("openai/x").unwrap().targets[0].member;
        assert_eq!(member.features(), compatible.features, "{text}");
    }
}
