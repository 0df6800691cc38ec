use lapce_ai_proto::status::{
    Breaker, CacheStatus, ConnectionStatus, Counters, LedgerStatus, PoolStatus, Probe,
    ReactorStatus, Spending, TierStatus,
};

use super::*;

fn everything() -> Status {
    let health = Health {
        asked: 7,
        first_token_p50_ms: Some(1_234),
        breakers: vec![Breaker {
            state: "open".into(),
            ..Breaker::default()
        }],
        limits: [None, Some(100), Some(5_000)]
            .map(|most| LimitStatus {
                scope: "key".into(),
                measure: "tokens".into(),
                key: Some(2),
                most,
                left: 5,
                ..LimitStatus::default()
            })
            .to_vec(),
        probe: Some(Probe {
            ok: true,
            took_ms: 20,
            ..Probe::default()
        }),
        ..Health::default()
    };
    Status {
        name: "lapce-ai 0.1.0".into(),
        connections: ["shared memory", "socket", "shared memory"]
            .map(|transport| ConnectionStatus {
                transport: transport.into(),
                in_flight: 2,
                ..ConnectionStatus::default()
            })
            .to_vec(),
        reactors: vec![ReactorStatus::default(); 2],
        providers: vec![ProviderStatus {
            name: "a \"b\"\\\nc".into(),
            health: Some(health),
            spend: Some(Spending {
                month_nano_usd: 2_500_000_001,
                ..Spending::default()
            }),
            ..ProviderStatus::default()
        }],
        counters: Counters {
            reconnections: 4,
            ..Counters::default()
        },
        pool: PoolStatus {
            waited_micros: 1_500,
            tiers: vec![
                TierStatus {
                    size: Some(4096),
                    hits: 3,
                    ..TierStatus::default()
                },
                TierStatus::default(),
            ],
            ..PoolStatus::default()
        },
        budgets: vec![BudgetStatus {
            name: "all".into(),
            per: "month".into(),
            client: Some(1000),
            hard_nano_usd: Some(10_000_000_000),
            ..BudgetStatus::default()
        }],
        cache: Some(CacheStatus::default()),
        ledger: Some(LedgerStatus::default()),
        ..Status::default()
    }
}

#[test]
fn figures_have_their_lines() {
    let text = exposition(&everything());
    for line in [
        "lapce_ai_info{version=\"lapce-ai 0.1.0\"} 1",
        "lapce_ai_connections{transport=\"shared memory\"} 2",
        "lapce_ai_requests_in_flight 6",
        "lapce_ai_reconnections_total 4",
        "lapce_ai_reactor_requests_total{reactor=\"1\"} 0",
        "lapce_ai_buffers_waited_seconds_total 0.001500",
        "lapce_ai_buffers_hits_total{size=\"4096\"} 3",
        "lapce_ai_buffers_hits_total{size=\"larger\"} 0",
        r#"lapce_ai_provider_asked_total{provider="a \"b\"\\\nc"} 7"#,
        r#"lapce_ai_provider_first_token_seconds{provider="a \"b\"\\\nc",quantile="0.5"} 1.234"#,
        r#"lapce_ai_provider_breaker{provider="a \"b\"\\\nc",model="",state="open"} 1"#,
        r#"lapce_ai_provider_limit_left{provider="a \"b\"\\\nc",scope="key",measure="tokens",model="",key="2",most="100"} 5"#,
        r#"lapce_ai_provider_probe_seconds{provider="a \"b\"\\\nc"} 0.020"#,
        r#"lapce_ai_spent_month_usd{provider="a \"b\"\\\nc"} 2.500000001"#,
        "lapce_ai_budget_hard_usd{budget=\"all\",per=\"month\",provider=\"\",client=\"1000\"} 10.000000000",
        "lapce_ai_cache_hits_total 0",
        "lapce_ai_ledger_written 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert!(
        !text.contains("budget_soft"),
        "there is none, and so no family:\n{text}"
    );
}

#[test]
fn families_are_whole_and_told_of_once() {
    let text = exposition(&everything());
    let (mut told, mut series) = (Vec::new(), Vec::new());
    for line in text.lines() {
        if let Some(of) = line.strip_prefix("# TYPE ") {
            let (name, kind) = of.split_once(' ').unwrap();
            assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
            assert!(!told.contains(&name), "{name} is there twice");
            told.push(name);
        } else if !line.starts_with('#') {
            let end = line.find(['{', ' ']).unwrap();
            assert_eq!(Some(&&line[..end]), told.last(), "{line}");
            let (one, _) = line.rsplit_once(' ').unwrap();
            assert!(!series.contains(&one), "{one} is there twice");
            series.push(one);
        }
    }
    assert!(told.len() > 50, "{}", told.len());
}
