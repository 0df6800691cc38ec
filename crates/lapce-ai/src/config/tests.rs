use lapce_ai_providers::PROFILES;

use super::*;

fn read_with(
    text: &str,
    variables: &[(&str, &str)],
    flags: &[(&str, &str, &str)],
) -> Result<Config, ConfigError> {
    let sources = Sources {
        file: None,
        variables: variables
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect(),
        flags: flags
            .iter()
            .map(|(path, value, flag)| ((*path).into(), (*value).into(), (*flag).into()))
            .collect(),
    };
    Config::read(Some(PathBuf::from("/etc/c.toml")), text, &sources)
}

fn read(text: &str) -> Result<Config, ConfigError> {
    read_with(text, &[], &[])
}

fn error(text: &str) -> String {
    read(text).unwrap_err().to_string()
}

#[test]
fn the_example_holds_every_setting_with_its_default() {
    // Prose is `# text`, a setting is `#key = value`.
    let uncommented: String = EXAMPLE
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(setting) if !setting.starts_with(' ') && !setting.is_empty() => {
                format!("{setting}\n")
            }
            _ => format!("{line}\n"),
        })
        .collect();
    let example = read(&uncommented).unwrap();
    let defaults = read("").unwrap();
    for (shown, default) in example.settings.iter().zip(&defaults.settings) {
        let name = format!("{}.{}", default.section, default.key);
        assert_eq!(
            (&shown.section, &shown.key),
            (&default.section, &default.key)
        );
        assert!(
            matches!(shown.origin, Origin::File { .. }),
            "{name} is missing in the example"
        );
        // These have no default that is the same everywhere.
        let by_machine = [
            "ipc.socket_path",
            "ipc.reactor_threads",
            "requests.default_model",
            "spend.ledger",
            "spend.prices",
            "log.file",
            "network.https_proxy",
            "network.no_proxy",
        ];
        if !by_machine.contains(&name.as_str()) {
            assert_eq!(shown.value, default.value, "{name}");
        }
    }
    assert_eq!(example.settings.len(), defaults.settings.len());
    read(EXAMPLE).unwrap();
}

#[test]
fn the_defaults_are_the_server_s() {
    let (config, server) = (read("").unwrap(), Options::default());
    assert_eq!(config.ipc.limits, server.limits);
    assert_eq!(config.ipc.max_connections as usize, server.max_connections);
    assert_eq!(config.ipc.buffer_pool_size, server.pool.budget);
    assert_eq!(config.ipc.idle_timeout, server.idle_timeout);
    assert_eq!(
        (config.ipc.ring_size, config.ipc.ring_size),
        (server.request_capacity, server.response_capacity)
    );
    assert_eq!(config.requests.default_deadline, server.default_deadline);
    assert_eq!(config.ipc.spin, server.spin);
    assert_eq!(config.ipc.reactor_threads as usize, server.reactors);
    assert_eq!(config.ipc.stall_timeout, server.stall_timeout);
    assert_eq!(config.ipc.stall_bytes as usize, server.stall_bytes);
    assert_eq!(config.ipc.repeats, server.repeats);
}

#[test]
fn the_example_s_providers_can_be_used_as_they_stand() {
    let providers: String = EXAMPLE
        .lines()
        .skip_while(|line| !line.starts_with("# [providers."))
        .map(|line| format!("{}\n", line.strip_prefix("# ").unwrap_or_default()))
        .collect();
    let config = read(&providers).unwrap();
    let names: Vec<&str> = config
        .providers
        .iter()
        .map(|provider| provider.name.as_str())
        .collect();
    assert_eq!(
        names,
        [
            "openai", "work", "box", "office", "groq", "bedrock", "vertex", "azure", "local",
        ]
    );
    assert_eq!(config.aliases[0].0, "fast");
    let ProviderKind::Http(office) = &config.providers[3].kind else {
        panic!()
    };
    assert!(
        matches!(office.keys.as_slice(), [ApiKey::File(path)] if path == Path::new("/etc/office.key"))
    );
    assert_eq!(office.headers[0].0, "X-Team");
    let ProviderKind::Http(groq) = &config.providers[4].kind else {
        panic!()
    };
    assert!(
        matches!(groq.keys.as_slice(), [ApiKey::Environment(first), ApiKey::File(second)]
            if first == "GROQ_KEY_1" && second == Path::new("/etc/groq-2.key"))
    );
    assert_eq!(
        config.routes[0].targets,
        ["openai/gpt-5.4", "office/qwen3-coder"]
    );
    let ProviderKind::Http(bedrock) = &config.providers[5].kind else {
        panic!()
    };
    assert_eq!(bedrock.region.as_deref(), Some("us-east-1"));
    assert_eq!(bedrock.aws_profile.as_deref(), Some("work"));
    // A profile of AWS is nothing that others have.
    assert!(error("[providers.groq]\naws_profile = 'x'\n").contains("unknown key"));
    let ProviderKind::Http(vertex) = &config.providers[6].kind else {
        panic!()
    };
    assert_eq!(
        (vertex.project.as_deref(), vertex.region.as_deref()),
        (Some("my-project"), Some("europe-west4"))
    );
    let ProviderKind::Http(azure) = &config.providers[7].kind else {
        panic!()
    };
    assert_eq!(
        (azure.base_url.as_deref(), azure.api_version.as_deref()),
        (
            Some("https://my-resource.openai.azure.com"),
            Some("2024-10-21")
        )
    );
    // Versions of the API are nothing that others have.
    assert!(error("[providers.groq]\napi_version = 'x'\n").contains("unknown key"));
    let ProviderKind::Local(local) = &config.providers[8].kind else {
        panic!()
    };
    assert_eq!(local.tokens_per_second, Some(50.0));
    assert_eq!(local.failure.unwrap().after_tokens, 10);
}

#[test]
fn unknown_names_are_answered_with_line_column_and_the_nearest() {
    assert_eq!(
        error("[ipc]\n  max_conections = 10\n"),
        "/etc/c.toml:2:3: unknown key `ipc.max_conections`: did you mean `max_connections`?"
    );
    assert_eq!(
        error("\n[ipcc]\n"),
        "/etc/c.toml:2:2: unknown section `ipcc`: did you mean `ipc`?"
    );
    assert_eq!(
        error("[discovery]\nzzz = 1"),
        "/etc/c.toml:2:1: unknown key `discovery.zzz`: [discovery] has: environment, loopback"
    );
    assert_eq!(
        error("[providers.groq]\nbase_ulr = 'x'\n"),
        "/etc/c.toml:2:1: unknown key `providers.groq.base_ulr`: did you mean `base_url`?"
    );
}

#[test]
fn wrong_values_are_answered_with_what_is_allowed() {
    assert_eq!(
        error("[ipc]\nmax_connections = 0"),
        "/etc/c.toml:2:1: ipc.max_connections must be a whole number from 1 to 1000000, not 0"
    );
    assert_eq!(
        error("[log]\nlevel = 'loud'\n"),
        "/etc/c.toml:2:1: log.level must be one of \"off\", \"error\", \"warn\", \"info\", \"debug\", \"trace\", not \"loud\""
    );
    assert_eq!(
        error("[ipc]\nring_size = '5 horses'\n"),
        "/etc/c.toml:2:1: ipc.ring_size must be a size from 4KiB to 1GiB, in bytes or with a unit such as \"64KiB\", not \"5 horses\""
    );
    assert_eq!(
        error("ipc = 3"),
        "/etc/c.toml:1:1: ipc must be a table such as [ipc], not 3"
    );
    assert!(
        error("[ipc\nx = 1").starts_with("/etc/c.toml:1:5: "),
        "{}",
        error("[ipc\nx = 1")
    );
}

#[test]
fn every_problem_is_told_in_the_file_s_order() {
    let text = error("[log]\nlevel = 1\n[ipc]\nmax_streams = 'x'\nfoo = 1\n");
    let places: Vec<&str> = text
        .lines()
        .map(|line| line.split(": ").next().unwrap())
        .collect();
    assert_eq!(
        places,
        ["/etc/c.toml:2:1", "/etc/c.toml:4:1", "/etc/c.toml:5:1"]
    );
}

#[test]
fn sizes_must_fit_each_other() {
    assert_eq!(
        error("[ipc]\nmax_message_size = '100MiB'"),
        "/etc/c.toml:2:1: ipc.buffer_pool_size (64MiB) must be at least ipc.max_message_size (100MiB), or the largest message could never be taken"
    );
    assert_eq!(
        error("[ipc]\nring_size = '100KiB'"),
        "/etc/c.toml:2:1: ipc.ring_size must be a power of two such as 64KiB or 128KiB, not 100KiB"
    );
    assert_eq!(
        error("[ipc]\nmax_frame_payload = '64KiB'"),
        "/etc/c.toml:2:1: ipc.max_frame_payload (64KiB) may be at most 64480B with ipc.ring_size = 128KiB: two frames must fit into a ring"
    );
    assert!(
        error("[ipc]\ninline_window = 1024").contains("ipc.inline_window (1KiB) must be at least")
    );
    read("[ipc]\nring_size = 8192\nmax_frame_payload = 1024\ninline_window = 2048").unwrap();
}

#[test]
fn environment_stands_above_the_file_and_flags_above_both() {
    let file = "[ipc]\nmax_connections = 10\nmax_streams = 11\nidle_timeout_secs = 0";
    let variables = [
        ("LAPCE_AI_IPC__MAX_CONNECTIONS", "50"),
        ("LAPCE_AI_IPC__MAX_STREAMS", "51"),
        ("LAPCE_AI_CONFIG", "x"),
    ];
    let config = read_with(file, &variables, &[("ipc.max_streams", "99", "--set")]).unwrap();
    assert_eq!(
        (config.ipc.max_connections, config.ipc.limits.max_streams),
        (50, 99)
    );
    assert_eq!(config.ipc.idle_timeout, None);
    let shown = config.to_toml();
    for (line, origin) in [
        (
            "max_connections = 50 ",
            "# environment: LAPCE_AI_IPC__MAX_CONNECTIONS",
        ),
        ("max_streams = 99 ", "# flag: --set"),
        ("idle_timeout_secs = 0 ", "# file, line 4"),
        ("stall_timeout_secs = 30 ", "# default"),
    ] {
        let found = shown
            .lines()
            .find(|shown| shown.starts_with(line))
            .unwrap_or_else(|| panic!("{shown}"));
        assert!(found.ends_with(origin), "{found}");
    }
}

#[test]
fn a_wrong_variable_or_flag_is_named() {
    let wrong = |variable| read_with("", &[variable], &[]).unwrap_err().to_string();
    assert_eq!(
        wrong(("LAPCE_AI_IPC__MAX_CONNECTIONS", "many")),
        "environment variable LAPCE_AI_IPC__MAX_CONNECTIONS: ipc.max_connections must be a whole number from 1 to 1000000, not \"many\""
    );
    assert_eq!(
        wrong(("LAPCE_AI_IPC__MAX_CONECTIONS", "5")),
        "environment variable LAPCE_AI_IPC__MAX_CONECTIONS: unknown key `ipc.max_conections`: did you mean `max_connections`?"
    );
    let flag = read_with("", &[], &[("ipc.x", "1", "--set ipc.x")])
        .unwrap_err()
        .to_string();
    assert!(
        flag.starts_with("--set ipc.x: unknown key `ipc.x`"),
        "{flag}"
    );
}

#[test]
fn variables_reach_providers_whatever_their_names() {
    let file = "[providers.my-box]\ntype = 'openai'\nbase_url = 'http://127.0.0.1:1/v1'";
    let variables = [
        ("LAPCE_AI_PROVIDERS__MY_BOX__DEFAULT_MODEL", "m"),
        ("LAPCE_AI_PROVIDERS__GROQ__API_KEY", "gsk-secret-1"),
    ];
    let config = read_with(file, &variables, &[]).unwrap();
    let names: Vec<&str> = config
        .providers
        .iter()
        .map(|provider| provider.name.as_str())
        .collect();
    assert_eq!(names, ["my-box", "groq"]);
    assert_eq!(config.providers[0].default_model.as_deref(), Some("m"));
}

#[test]
fn keys_are_never_shown() {
    let file = "[providers.groq]\napi_key = 'gsk-secret-1'\nheaders = { 'X-Key' = 'secret-2' }";
    let config = read(file).unwrap();
    let all = format!("{} {} {config:?}", config.to_toml(), config.to_json());
    assert!(!all.contains("secret"), "{all}");
    assert!(all.contains("[redacted]"));
    for wrong in [
        "[providers.groq]\napi_key = ['secret-3']",
        "[providers.groq]\napi_key = 'secret-4",
        "[providers.groq]\nheaders = { a = ['secret-5'] }",
        "[providers.groq]\napi_key = 'secret-6'\napi_key_env = 'X'",
        "[providers.groq]\nbase_url = 'http://me:secret-7@h/v1'",
    ] {
        assert!(!error(wrong).contains("secret-"), "{}", error(wrong));
    }
}

#[test]
fn what_is_shown_can_be_read_again() {
    let file = "[providers.\"my box\"]\ntype = 'openai'\nbase_url = 'http://127.0.0.1:1/v1'\nheaders = { \"a b\" = 'c' }\n[log]\nfile = \"/tmp/\\\"x\\\\y\"";
    let config = read(file).unwrap();
    let again = read(&config.to_toml()).unwrap();
    let values = |config: &Config| -> Vec<_> {
        config
            .settings
            .iter()
            .map(|setting| {
                (
                    setting.section.clone(),
                    setting.key.clone(),
                    setting.value.clone(),
                )
            })
            .collect()
    };
    assert_eq!(values(&again), values(&config));
}

#[test]
fn a_provider_needs_its_type_and_address() {
    let missing = error("[providers.mine]\n");
    assert_eq!(
        missing,
        format!(
            "/etc/c.toml:1:12: providers.mine: type is missing; it must be one of {}, \"local\"",
            PROFILES
                .iter()
                .map(|profile| format!("{:?}", profile.name))
                .collect::<Vec<_>>()
                .join(", ")
        )
    );
    assert!(error("[providers.mine]\ntype = 'compatible'").contains("base_url is missing"));
    assert_eq!(
        error("[providers.groq]\napi_key_env = 'A'\napi_key_file = 'b'"),
        "/etc/c.toml:3:1: providers.groq: only one of api_key, api_key_env, api_key_file and api_key_command may be set"
    );
    assert!(
        error("[providers.\"a/b\"]\ntype = 'local'").contains("must not be empty or have a `/`")
    );
}

#[test]
fn a_named_file_must_be_there_and_the_usual_one_need_not() {
    let empty = tempfile::tempdir().unwrap();
    let home = empty.path().to_str().unwrap();
    let usual = Sources {
        variables: vec![("HOME".into(), home.into())],
        ..Sources::default()
    };
    assert_eq!(Config::load(&usual).unwrap().file, None);
    let named = Sources {
        file: Some(empty.path().join("no.toml")),
        ..usual.clone()
    };
    let error = Config::load(&named).unwrap_err().to_string();
    assert!(error.contains("no.toml"), "{error}");
    fs::create_dir_all(empty.path().join(".config/lapce-ai")).unwrap();
    fs::write(
        empty.path().join(".config/lapce-ai/config.toml"),
        "[ipc]\nmax_streams = 7\n",
    )
    .unwrap();
    assert_eq!(Config::load(&usual).unwrap().ipc.limits.max_streams, 7);
    let variable = (
        "LAPCE_AI_CONFIG".to_owned(),
        empty.path().join("other.toml").to_str().unwrap().to_owned(),
    );
    let elsewhere = Sources {
        variables: vec![usual.variables[0].clone(), variable],
        ..Sources::default()
    };
    assert!(matches!(
        Config::load(&elsewhere),
        Err(ConfigError::Unreadable { .. })
    ));
}

#[test]
fn routes_and_lists_of_keys_are_checked_where_they_stand() {
    for (text, expected) in [
        (
            "[routes.x]\n",
            "1:9: routes.x: targets must be 1 to 32 models",
        ),
        (
            "[routes.x]\ntargets = []\n",
            "2:1: routes.x: targets must be 1 to 32",
        ),
        (
            "[routes.'a/b']\ntargets = ['m']\n",
            "must not be empty or have a `/`",
        ),
        (
            "[providers.groq]\n[routes.Groq]\ntargets = ['m']\n",
            "2:9: routes.Groq: [providers.groq] has the same name",
        ),
        (
            "[aliases]\nX = 'm'\n[routes.x]\ntargets = ['m']\n",
            "3:9: routes.x: aliases.X has the same name",
        ),
        (
            "[aliases]\nfast = 'x'\n[routes.x]\ntargets = ['m']\n",
            "3:9: routes.x: aliases.fast leads here, and an alias leads to one model",
        ),
        (
            "[routes.x]\ntargets = ['m']\nbalance = 'best'\n",
            "3:1: routes.x.balance must be one of \"ordered\", \"weighted\"",
        ),
        (
            "[routes.x]\ntargets = ['m', 'n']\nbalance = 'weighted'\nweights = [1]\n",
            "4:1: routes.x: there are 1 weights for 2 targets",
        ),
        (
            "[routes.x]\ntargets = ['m']\nweights = [1]\n",
            "3:1: routes.x: weights belong to balance = \"weighted\"",
        ),
        (
            "[routes.x]\ntargets = ['m']\nbalance = 'weighted'\nweights = [0]\n",
            "weights must be a list of whole numbers from 1 to 1000",
        ),
        (
            "[routes.x]\ntarget = ['m']\n",
            "unknown key `routes.x.target`: did you mean `targets`?",
        ),
        (
            "[routes.x]\ntargets = ['m']\nhedge_after = 1\n",
            "3:1: routes.x: hedge_after needs a second target to ask",
        ),
        (
            "[routes.x]\ntargets = ['m', 'n']\nhedge_budget = 0.5\n",
            "3:1: routes.x: hedge_budget does nothing without hedge_after",
        ),
        (
            "[routes.x]\ntargets = ['m', 'n']\nhedge_after = 'p100'\n",
            "hedge_after must be a number of seconds from 0.001 to 3600, or a percentile from \"p1\" to \"p99\"",
        ),
        (
            "[providers.groq]\nbreaker = { open_secs = 500 }\n",
            "providers.groq.breaker.open_secs must not be more than providers.groq.breaker.max_open_secs",
        ),
        (
            "[providers.groq]\nbreaker = { opens = 5 }\n",
            "unknown key `providers.groq.breaker.opens`",
        ),
        (
            "[providers.groq]\nbreaker = 5\n",
            "providers.groq.breaker must be a table",
        ),
        (
            "[breaker]\nopen_secs = 500\n",
            "2:1: breaker.open_secs must not be more than breaker.max_open_secs",
        ),
        (
            "[providers.groq]\napi_keys = 'k'\n",
            "2:1: providers.groq: api_keys must be a list of tables",
        ),
        (
            "[providers.groq]\napi_keys = ['sk-secret']\n",
            "providers.groq.api_keys[0] must be a table",
        ),
        (
            "[providers.groq]\napi_keys = [{ api_key = 'sk-secret', api_key_env = 'B' }]\n",
            "only one of api_key, api_key_env, api_key_file and api_key_command",
        ),
        (
            "[providers.groq]\napi_keys = [{}]\n",
            "2:1: providers.groq.api_keys[0]: it says nowhere where the key is",
        ),
    ] {
        let error = error(text);
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains("sk-secret"), "{error}");
    }
    let config = read("[providers.groq]\napi_keys = [{ api_key = 'sk-secret' }]\n").unwrap();
    assert!(!config.to_toml().contains("sk-secret"));
    assert!(!config.to_json().to_string().contains("sk-secret"));
}

#[test]
fn waits_of_a_provider_are_those_of_all_unless_it_says_otherwise() {
    let config = read(
        "[requests]\nfirst_token_timeout_secs = 7\nanswer_timeout_secs = 90\n[providers.groq]\nanswer_timeout_secs = 0\n[providers.openai]\n",
    )
    .unwrap();
    let waits = |at: usize| match &config.providers[at].kind {
        ProviderKind::Http(settings) => settings.waits,
        ProviderKind::Local(_) => panic!(),
    };
    assert_eq!(waits(0).timeouts.first_token.as_secs(), 7);
    assert_eq!(
        (waits(0).answer, waits(1).answer),
        (None, Some(Duration::from_secs(90)))
    );
}

#[test]
fn limits_are_every_provider_s_unless_it_has_its_own() {
    use lapce_ai_providers::{ModelLimits, Rate};
    let config = read(
        "[limits]
max_in_flight = 8
tokens_per_minute = 1000
[providers.groq]
max_in_flight = 0
max_waiting = 3
key_requests_per_minute = 9
learn_from_headers = false
[providers.groq.model_limits.'llama/x']
max_in_flight = 2
requests_per_minute = 5
[providers.local]
[clients]
requests_per_minute = 60
[clients.users]
1000 = { requests_per_minute = 0 }
1001 = { tokens_per_minute = 7 }",
    )
    .unwrap();
    let (groq, local) = (&config.providers[0].limits, &config.providers[1].limits);
    assert_eq!(*local, config.limits);
    assert_eq!(local.max_in_flight, Some(8));
    assert_eq!((groq.max_in_flight, groq.queue), (None, 3));
    let rate = |requests_per_minute, tokens_per_minute| Rate {
        requests_per_minute,
        tokens_per_minute,
    };
    assert_eq!(groq.rate, rate(None, Some(1000)));
    assert_eq!(groq.key_rate, rate(Some(9), None));
    let model = ModelLimits {
        max_in_flight: Some(2),
        rate: rate(Some(5), None),
    };
    assert_eq!(groq.models, [("llama/x".into(), model)]);
    assert!(!groq.learn);
    assert_eq!(config.clients.usual, rate(Some(60), None));
    let special = [(1000, rate(None, None)), (1001, rate(Some(60), Some(7)))];
    assert_eq!(config.clients.special, special);
    // What is printed is read again as the same.
    let printed = config.to_toml();
    let again = read(&printed).unwrap();
    assert_eq!(again.providers[0].limits, *groq, "{printed}");
    assert_eq!(again.clients, config.clients);
}

#[test]
fn wrong_limits_are_told_of_with_their_place() {
    let text = error(
        "[limits]
max_in_flight = -1
[providers.groq]
max_wait_secs = 'long'
model_limits = 3
[providers.local.model_limits.x]
max_waiting = 3
[clients.users]
me = { requests_per_minute = 1 }",
    );
    let lines: Vec<&str> = text.lines().collect();
    for (line, sign) in lines.iter().zip([
        "limits.max_in_flight must be a whole number from 0 to 1000000000",
        "providers.groq.max_wait_secs must be a number of seconds",
        "providers.groq: model_limits must be a table such as",
        "unknown key `providers.local.model_limits.x.max_waiting`",
        "clients.users.me: its name must be a user id such as 1000",
    ]) {
        assert!(line.contains(sign), "{text}");
    }
    assert_eq!(lines.len(), 5, "{text}");
}

#[test]
fn a_provider_s_breaker_says_only_what_differs() {
    let text = "[breaker]\nmin_calls = 7\n[providers.groq]\nbreaker = { open_secs = 9 }\nprobe_secs = 30\n[providers.xai]\n";
    let config = read(text).unwrap();
    let own = config.providers[0].breaker.unwrap();
    assert_eq!((own.min_calls, own.open.as_secs()), (7, 9));
    assert_eq!(config.providers[0].probe, Some(Duration::from_secs(30)));
    assert_eq!(
        (config.providers[1].breaker, config.providers[1].probe),
        (None, None)
    );
    let again = read(&config.to_toml()).unwrap();
    assert_eq!(again.providers[0].breaker, Some(own));
}

#[test]
fn a_route_hedges_and_goes_on_only_where_it_says_so() {
    let text = "[routes.a]\ntargets = ['m', 'n']\n[routes.b]\ntargets = ['m', 'n']\nhedge_after = 'p95'\ncontinue_midstream = true\n";
    let config = read(text).unwrap();
    let [plain, both] = config.routes.as_slice() else {
        panic!()
    };
    assert_eq!((plain.hedge, plain.continue_midstream), (None, false));
    let hedge = both.hedge.unwrap();
    assert_eq!(hedge.after, lapce_ai_providers::HedgeAfter::Percentile(95));
    assert!(both.continue_midstream && (0.099..0.101).contains(&hedge.budget));
    assert_eq!(read(&config.to_toml()).unwrap().routes, config.routes);
}

#[test]
fn the_address_tells_which_server_of_openai_s_kind_it_is() {
    for (text, profile) in [
        ("[providers.openai]", "openai"),
        ("[providers.work]\ntype = 'openai'", "openai"),
        ("[providers.work]\ntype = 'openrouter'", "openrouter"),
        ("[providers.openai]\nbase_url = 'http://h/v1'", "compatible"),
        (
            "[providers.x]\ntype = 'openai'\nbase_url = 'https://api.groq.com/openai/v1/'",
            "groq",
        ),
        ("[providers.groq]\nbase_url = 'http://h/v1'", "groq"),
        (
            "[providers.office]\ntype = 'compatible'\nbase_url = 'http://h/v1'",
            "compatible",
        ),
    ] {
        let config = read(text).unwrap();
        let ProviderKind::Http(settings) = &config.providers[0].kind else {
            panic!()
        };
        assert_eq!(settings.profile.name, profile, "{text}");
    }
}

#[test]
fn a_key_may_come_from_a_command_whose_words_are_secret() {
    let command = |line: &str| {
        let config = read(&format!("[providers.groq]\n{line}"))?;
        let shown = format!("{} {} {config:?}", config.to_toml(), config.to_json());
        assert!(!shown.contains("s3cret"), "{shown}");
        let ProviderKind::Http(settings) = config.providers[0].kind.clone() else {
            panic!()
        };
        let [ApiKey::Command(command)] = settings.keys.as_slice() else {
            panic!("{:?}", settings.keys)
        };
        Ok::<_, ConfigError>(command.clone())
    };
    let settings = "api_key_command = ['pass', 's3cret']\napi_key_ttl_secs = 60";
    let argv = command(settings).unwrap();
    assert_eq!(
        argv.run,
        KeyProgram::Program("pass".into(), vec!["s3cret".into()])
    );
    assert_eq!(
        (argv.ttl, argv.timeout),
        (Some(Duration::from_secs(60)), Duration::from_secs(30))
    );
    let shell = command("api_key_command = 'T=s3cret get'").unwrap();
    assert_eq!(shell.run, KeyProgram::Shell("T=s3cret get".into()));
    let one_of_several = command("api_keys = [{ api_key_command = 'T=s3cret get' }]").unwrap();
    assert_eq!(one_of_several.run, shell.run);
    for (line, part) in [
        (
            "api_key_command = []",
            "must be a line for the shell such as",
        ),
        (
            "api_key_command = ['']",
            "must be a line for the shell such as",
        ),
        (
            "api_key_command = ' '",
            "must be a line for the shell such as",
        ),
        (
            "api_key_command = 3",
            "must be a line for the shell such as",
        ),
        ("api_key_ttl_secs = 5", "belongs to an api_key_command"),
        (
            "api_key_command = 'x'\napi_key = 's3cret'",
            "only one of api_key",
        ),
    ] {
        let error = command(line).unwrap_err().to_string();
        assert!(
            error.contains(part) && !error.contains("s3cret"),
            "{line}: {error}"
        );
    }
}

#[test]
fn aliases_are_names_for_models() {
    let text = "[aliases]\nzoom = 'groq/llama-3'\n'my own' = 'gpt-4o'\n[providers.groq]\n";
    let config = read_with(text, &[("LAPCE_AI_ALIASES__FAST", "groq/x")], &[]).unwrap();
    let pairs: Vec<_> = config
        .aliases
        .iter()
        .map(|(name, model)| (name.as_str(), model.as_str()))
        .collect();
    assert_eq!(
        pairs,
        [
            ("zoom", "groq/llama-3"),
            ("my own", "gpt-4o"),
            ("fast", "groq/x")
        ]
    );
    assert!(config.to_toml().contains("\"my own\" = \"gpt-4o\""));
    assert_eq!(read(&config.to_toml()).unwrap().aliases, config.aliases);
    for (text, part) in [
        ("aliases = 3", "aliases must be a table such as [aliases]"),
        (
            "[aliases]\n'a/b' = 'x'",
            "/etc/c.toml:2:1: aliases.a/b: an alias must not",
        ),
        (
            "[aliases]\nfast = ['x']",
            "aliases.fast must be a model such as",
        ),
        (
            "[aliases]\nfast = ['x', 'y']",
            "several models are a route, see [routes]",
        ),
        (
            "[aliases]\nGroq = 'x'\n[providers.groq]",
            "aliases.Groq: [providers.groq] has the same name",
        ),
    ] {
        assert!(error(text).contains(part), "{}", error(text));
    }
}

#[test]
fn everybody_s_proxy_variables_stand_below_the_file() {
    let variables = [
        ("https_proxy", "http://me:s3cret@proxy:1"),
        ("NO_PROXY", "a.example"),
    ];
    let proxy = |text: &str| {
        let config = read_with(text, &variables, &[]).unwrap();
        let shown = format!("{} {} {config:?}", config.to_toml(), config.to_json());
        assert!(!shown.contains("s3cret"), "{shown}");
        let proxy = config.network.https_proxy.as_ref();
        let proxy = proxy.map(|proxy| proxy.expose_secret().to_owned());
        (proxy, config.network.no_proxy.clone())
    };
    assert_eq!(
        proxy(""),
        (Some("http://me:s3cret@proxy:1".into()), "a.example".into())
    );
    assert_eq!(
        proxy("[network]\nhttps_proxy = 'http://other'\nno_proxy = '*'"),
        (Some("http://other".into()), "*".into())
    );
    assert_eq!(proxy("[network]\nhttps_proxy = 'none'").0, None);
    let shown = read_with("", &variables, &[]).unwrap().to_toml();
    assert!(shown.contains("# environment: NO_PROXY"), "{shown}");
}

#[test]
fn a_type_or_else_a_name_says_what_a_server_is() {
    let config = read(
        "[providers.cohere]\nbase_url = 'http://127.0.0.1:1'\n[providers.box]\ntype = 'ollama'\n[providers.openai]\n[providers.ollama]\ntype = 'openai'\nbase_url = 'http://127.0.0.1:1/v1'\n[providers.azure]\n",
    )
    .unwrap();
    let found: Vec<_> = config
        .providers
        .iter()
        .map(|provider| {
            let ProviderKind::Http(server) = &provider.kind else {
                panic!()
            };
            (server.profile.name, server.base_url.as_deref())
        })
        .collect();
    let expected = [
        ("cohere", Some("http://127.0.0.1:1")),
        ("ollama", None),
        ("openai", None),
        ("compatible", Some("http://127.0.0.1:1/v1")),
        ("azure", None),
    ];
    assert_eq!(found, expected);
}
