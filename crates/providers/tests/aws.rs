//! Where the keys of an AWS account are found, and that they are new in time.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::HashMap;
use std::fs;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lapce_ai_providers::{
    AwsCredentials, AwsEnvironment, ErrorKind, Profile, ProviderError, Settings, Wire,
};
use support::{Upstream, client};

/// Wed, 21 Oct 2026 07:28:00 GMT.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_792_567_680)
}

fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

fn found(
    profile: Option<&str>,
    variables: &[(&str, &str)],
) -> Result<AwsCredentials, ProviderError> {
    environment(profile, variables).credentials()
}

fn environment(
    profile: Option<&str>,
    variables: &[(&str, &str)],
) -> AwsEnvironment<impl Fn(&str) -> Option<String> + use<>> {
    let variables: HashMap<String, String> = variables
        .iter()
        .map(|(name, value)| ((*name).into(), (*value).into()))
        .collect();
    AwsEnvironment::new(profile, move |name| variables.get(name).cloned())
}

fn wire(credentials: &AwsCredentials) -> Arc<dyn Wire> {
    let settings = Settings {
        region: Some("us-east-1".into()),
        aws: Some(credentials.clone()),
        ..Settings::default()
    };
    Profile::named("bedrock").unwrap().wire(&settings).unwrap()
}

/// The key and the session token with which a request is signed at this time.
async fn signed(
    credentials: &AwsCredentials,
    now: SystemTime,
) -> Result<(String, Option<String>), ProviderError> {
    let wire = wire(credentials);
    wire.credentials().unwrap().refresh(&client(), now).await?;
    let request = wire.chat_request(&support::request(), now)?;
    let header = |name: &str| {
        let value = request.headers().get(name)?;
        Some(value.to_str().unwrap().to_owned())
    };
    let authorization = header("authorization").unwrap();
    let (_, id) = authorization.split_once("Credential=").unwrap();
    Ok((
        id.split('/').next().unwrap().into(),
        header("x-amz-security-token"),
    ))
}

fn key(id: &str) -> (String, Option<String>) {
    (id.into(), None)
}

fn with_token(id: &str, token: &str) -> (String, Option<String>) {
    (id.into(), Some(token.into()))
}

fn wrong(result: Result<AwsCredentials, ProviderError>, signs: &[&str]) {
    let error = result.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Configuration, "{error}");
    for sign in signs {
        assert!(error.message.contains(sign), "{sign}: {error}");
    }
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .unwrap()
}

#[tokio::test]
async fn variables_come_first_unless_a_profile_was_chosen() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().to_str().unwrap();
    write(
        home.path(),
        "credentials",
        "[default]\naws_access_key_id=AKFILE\naws_secret_access_key=s\n",
    );
    let variables = [
        ("HOME", path),
        ("AWS_ACCESS_KEY_ID", "AKVARIABLE"),
        ("AWS_SECRET_ACCESS_KEY", " s\n"),
    ];
    let credentials = found(None, &variables).unwrap();
    assert_eq!(
        signed(&credentials, now()).await.unwrap(),
        key("AKVARIABLE")
    );
    let with = [&variables[..], &[("AWS_SESSION_TOKEN", "t")]].concat();
    let credentials = found(None, &with).unwrap();
    assert_eq!(
        signed(&credentials, now()).await.unwrap(),
        with_token("AKVARIABLE", "t")
    );
    let credentials = found(Some("default"), &variables).unwrap();
    assert_eq!(signed(&credentials, now()).await.unwrap(), key("AKFILE"));
    wrong(found(None, &variables[..2]), &["AWS_SECRET_ACCESS_KEY"]);
    // An empty variable is none.
    let empty = [
        variables[0],
        ("AWS_ACCESS_KEY_ID", ""),
        ("AWS_SECRET_ACCESS_KEY", " "),
    ];
    let credentials = found(None, &empty).unwrap();
    assert_eq!(signed(&credentials, now()).await.unwrap(), key("AKFILE"));
}

fn write(home: &Path, name: &str, text: &str) {
    fs::create_dir_all(home.join(".aws")).unwrap();
    fs::write(home.join(".aws").join(name), text).unwrap();
}

const CREDENTIALS: &str = "\
# comment
[default]
aws_access_key_id = AKDEFAULT
aws_secret_access_key = wJalr/K7+x==
[both]
AWS_ACCESS_KEY_ID=AKBOTH
aws_secret_access_key=s
aws_session_token = token/with=signs
[half]
aws_access_key_id = AKHALF
";
const CONFIG: &str = "\
[default]
region = eu-west-1
[profile both]
aws_access_key_id = AKNEVER
aws_secret_access_key = s
region = us-west-2
s3 =
  region = nowhere
  aws_access_key_id = AKNESTED
; comment
[profile \"of spaces\"]
aws_access_key_id=AKSPACES
aws_secret_access_key=s
[both]
aws_access_key_id = AKNOPREFIX
[profile role]
role_arn = arn:aws:iam::123456789012:role/x
source_profile = default
[profile sso]
sso_session = company
[sso-session company]
sso_start_url = https://x.awsapps.com/start
[profile nothing]
output = json
";

#[tokio::test]
async fn profiles_are_read_as_the_sdks_do() {
    let home = tempfile::tempdir().unwrap();
    write(home.path(), "credentials", CREDENTIALS);
    write(home.path(), "config", CONFIG);
    let path = home.path().to_str().unwrap();
    for (profile, region, expected) in [
        (None, "eu-west-1", key("AKDEFAULT")),
        (
            Some("both"),
            "us-west-2",
            with_token("AKBOTH", "token/with=signs"),
        ),
        (Some("of spaces"), "", key("AKSPACES")),
    ] {
        let chosen = environment(profile, &[("HOME", path)]);
        let mut variables = vec![("HOME", path)];
        variables.extend(profile.map(|name| ("AWS_PROFILE", name)));
        for environment in [chosen, environment(None, &variables)] {
            assert_eq!(environment.region().unwrap_or_default(), region);
            let credentials = environment.credentials().unwrap();
            assert_eq!(signed(&credentials, now()).await.unwrap(), expected);
        }
    }
    for (profile, signs) in [
        ("nobody", &["`nobody`", "is not there", path][..]),
        ("half", &["only one of"]),
        (
            "role",
            &["role_arn", "credential_process", "--profile role"],
        ),
        (
            "sso",
            &["sso_session", "credential_process", "--profile sso"],
        ),
        ("nothing", &["AWS_BEARER_TOKEN_BEDROCK", "`nothing`"]),
    ] {
        wrong(found(Some(profile), &[("HOME", path)]), signs);
    }
    wrong(
        found(None, &[("AWS_PROFILE", "nobody"), ("HOME", path)]),
        &["`nobody`"],
    );
    wrong(found(None, &[]), &["AWS_ACCESS_KEY_ID", "no file"]);
    // Other places, and regions of the environment.
    let elsewhere = [
        ("HOME", path),
        ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/config"),
        ("AWS_CONFIG_FILE", "/nowhere/at/all"),
        ("AWS_DEFAULT_REGION", "eu-central-1"),
    ];
    let environment = environment(Some("both"), &elsewhere);
    assert_eq!(environment.region().as_deref(), Some("eu-central-1"));
    wrong(
        environment.credentials(),
        &["only one of", "/nowhere/at/all"],
    );
}

#[tokio::test]
async fn a_profile_that_changes_is_read_again() {
    let home = tempfile::tempdir().unwrap();
    let text = |id: &str| format!("[default]\naws_access_key_id={id}\naws_secret_access_key=s\n");
    write(home.path(), "credentials", &text("AKOLD"));
    let credentials = found(None, &[("HOME", home.path().to_str().unwrap())]).unwrap();
    assert_eq!(signed(&credentials, now()).await.unwrap(), key("AKOLD"));
    write(home.path(), "credentials", &text("AKNEW"));
    // Not for every request.
    assert_eq!(signed(&credentials, now()).await.unwrap(), key("AKOLD"));
    let later = now() + minutes(1);
    assert_eq!(signed(&credentials, later).await.unwrap(), key("AKNEW"));
    fs::remove_file(home.path().join(".aws/credentials")).unwrap();
    let error = signed(&credentials, later + minutes(1)).await.unwrap_err();
    assert!(error.message.contains("no keys any more"), "{error}");
}

#[tokio::test]
async fn a_command_prints_keys() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().to_str().unwrap();
    let counted = home.path().join("runs");
    let process = |script: &str| {
        fs::write(home.path().join("script"), script).unwrap();
        write(
            home.path(),
            "config",
            &format!("[default]\ncredential_process = sh '{path}/script'\n"),
        );
        found(None, &[("HOME", path)]).unwrap()
    };
    let print = format!(
        r#"echo x >> '{}'
echo '{{"Version": 1, "AccessKeyId": "AKPROCESS", "SecretAccessKey": "s", "SessionToken": "t", "Expiration": "2026-10-21T09:28:00+01:00"}}'"#,
        counted.display()
    );
    let runs = || fs::read_to_string(&counted).unwrap().lines().count();
    let credentials = process(&print);
    let expected = with_token("AKPROCESS", "t");
    assert_eq!(signed(&credentials, now()).await.unwrap(), expected);
    assert_eq!(
        signed(&credentials, now() + minutes(49)).await.unwrap(),
        expected
    );
    assert_eq!(runs(), 1);
    // They expire at 8:28 and are fetched ten minutes before. The same ones still hold then.
    assert_eq!(
        signed(&credentials, now() + minutes(51)).await.unwrap(),
        expected
    );
    assert_eq!(runs(), 2);
    let error = signed(&credentials, now() + minutes(60)).await.unwrap_err();
    assert_eq!((error.kind, runs()), (ErrorKind::Authentication, 3));
    assert!(error.message.contains("expired"), "{error}");
    // Nobody is content with them, however often they come.
    let error = signed(&credentials, now() + minutes(60)).await.unwrap_err();
    assert_eq!((error.kind, runs()), (ErrorKind::Authentication, 4));

    assert!(
        !format!("{credentials:?}").contains("script"),
        "{credentials:?}"
    );
    for (script, kind, sign) in [
        (
            "echo secret-words; echo 'log in first' >&2; exit 3",
            ErrorKind::Authentication,
            "log in first",
        ),
        (
            "echo '{\"AccessKeyId\": \"secret-words\"}'",
            ErrorKind::Authentication,
            "Version",
        ),
        (
            "echo '{\"Version\": 1, \"AccessKeyId\": \"secret-words\"}'",
            ErrorKind::MalformedResponse,
            "SecretAccessKey",
        ),
        (
            "echo '{\"Version\": 1, \"AccessKeyId\": \"secret-words\", \"SecretAccessKey\": \"\"}'",
            ErrorKind::MalformedResponse,
            "empty",
        ),
        (
            "echo '{\"Version\": 1, \"AccessKeyId\": \"a\", \"SecretAccessKey\": \"b\", \"Expiration\": \"secret-words\"}'",
            ErrorKind::MalformedResponse,
            "no date",
        ),
    ] {
        let error = signed(&process(script), now()).await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(
            error.message.contains(sign) && !error.message.contains("secret-words"),
            "{error}"
        );
    }
}

fn container(upstream: &Upstream, more: &[(&str, &str)]) -> AwsCredentials {
    let url = format!("{}/v1/credentials?x=y", upstream.origin());
    let variables = [
        &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", url.as_str())],
        more,
    ]
    .concat();
    found(None, &variables).unwrap()
}

/// Answers the next request for keys.
async fn give(upstream: &Upstream, id: &str, expires: &str) {
    let body = format!(
        r#"{{"AccessKeyId": "{id}", "SecretAccessKey": "s", "Token": "t", "Expiration": "{expires}", "RoleArn": "r"}}"#
    );
    let mut exchange = upstream.accept().await;
    assert!(
        exchange
            .head
            .starts_with("get /v1/credentials?x=y http/1.1\r\n"),
        "{}",
        exchange.head
    );
    exchange
        .answer("200 OK", "connection: close\r\n", &body)
        .await;
}

#[tokio::test]
async fn a_container_gives_keys_before_the_old_ones_expire() {
    let upstream = Upstream::start().await;
    let credentials = container(&upstream, &[]);
    let sign = |after| signed(&credentials, now() + minutes(after));
    let (got, ()) =
        in_time(async { tokio::join!(sign(0), give(&upstream, "AK1", "2026-10-21T07:58:00Z")) })
            .await;
    assert_eq!(got.unwrap(), with_token("AK1", "t"));
    // They hold for 30 minutes: nobody is asked after 19, and after 21 others come.
    assert_eq!(sign(19).await.unwrap(), with_token("AK1", "t"));
    let (got, ()) =
        in_time(async { tokio::join!(sign(21), give(&upstream, "AK2", "2026-10-21T08:28:00Z")) })
            .await;
    assert_eq!(got.unwrap(), with_token("AK2", "t"));
    // While the old ones hold, a failure is no harm.
    let fail = async {
        let mut exchange = upstream.accept().await;
        let body = r#"{"code": "Busy", "message": "not now"}"#;
        exchange
            .answer("500 Oops", "connection: close\r\n", body)
            .await;
    };
    let (got, ()) = in_time(async { tokio::join!(sign(55), fail) }).await;
    assert_eq!(got.unwrap(), with_token("AK2", "t"));
    let fail = async {
        let mut exchange = upstream.accept().await;
        exchange
            .answer(
                "403 Forbidden",
                "connection: close\r\n",
                r#"{"message": "who are you?"}"#,
            )
            .await;
    };
    let (got, ()) = in_time(async { tokio::join!(sign(61), fail) }).await;
    let error = got.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Authentication);
    assert!(error.message.contains("who are you?"), "{error}");
}

#[tokio::test]
async fn many_who_wait_share_one_fetch_and_its_failure() {
    let upstream = Upstream::start().await;
    let credentials = container(&upstream, &[]);
    let many = || async {
        let tasks: Vec<_> = (0..20)
            .map(|_| {
                let credentials = credentials.clone();
                tokio::spawn(async move { signed(&credentials, now()).await })
            })
            .collect();
        let mut got = Vec::new();
        for task in tasks {
            got.push(task.await.unwrap());
        }
        got
    };
    // One answer is all that there is: a second request would wait for ever.
    let fail = async {
        let mut exchange = upstream.accept().await;
        // All others have come to wait by now.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        exchange
            .answer("429 Busy", "connection: close\r\n", "")
            .await;
    };
    let (got, ()) = in_time(async { tokio::join!(many(), fail) }).await;
    assert!(
        got.iter()
            .all(|got| got.as_ref().unwrap_err().kind == ErrorKind::RateLimited),
        "{got:?}"
    );
    let (got, ()) =
        in_time(async { tokio::join!(many(), give(&upstream, "AK1", "2026-10-21T09:00:00Z")) })
            .await;
    assert!(
        got.iter().all(|got| got.as_ref().unwrap().0 == "AK1"),
        "{got:?}"
    );
}

#[tokio::test]
async fn aws_may_say_that_they_have_expired() {
    let upstream = Upstream::start().await;
    let credentials = container(&upstream, &[]);
    let sign = || signed(&credentials, now());
    in_time(async { tokio::join!(sign(), give(&upstream, "AK1", "2026-10-21T09:00:00Z")) })
        .await
        .0
        .unwrap();
    let head = http::Response::builder()
        .status(403)
        .header("x-amzn-errortype", "ExpiredTokenException")
        .body(())
        .unwrap()
        .into_parts()
        .0;
    let error = wire(&credentials).decode_error(&head, b"{}", now());
    assert_eq!(error.kind, ErrorKind::Authentication);
    let (got, ()) =
        in_time(async { tokio::join!(sign(), give(&upstream, "AK2", "2026-10-21T09:00:00Z")) })
            .await;
    assert_eq!(got.unwrap().0, "AK2");
}

#[tokio::test]
async fn the_token_is_shown_to_the_agent_and_to_nobody_else() {
    let upstream = Upstream::start().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    fs::write(&file, "token-of-a-file\n").unwrap();
    for (variable, value, shown) in [
        (
            "AWS_CONTAINER_AUTHORIZATION_TOKEN",
            "Basic token-of-a-variable",
            "basic token-of-a-variable",
        ),
        (
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
            file.to_str().unwrap(),
            "token-of-a-file",
        ),
    ] {
        let credentials = container(&upstream, &[(variable, value)]);
        assert!(
            !format!("{credentials:?}").contains("token-of"),
            "{credentials:?}"
        );
        let serve = async {
            let mut exchange = upstream.accept().await;
            assert!(
                exchange
                    .head
                    .contains(&format!("\r\nauthorization: {shown}\r\n")),
                "{}",
                exchange.head
            );
            let body = format!(
                r#"{{"message": "no {} here"}}"#,
                value.replace(file.to_str().unwrap(), "token-of-a-file")
            );
            exchange
                .answer("401 Unauthorized", "connection: close\r\n", &body)
                .await;
        };
        let (got, ()) = in_time(async { tokio::join!(signed(&credentials, now()), serve) }).await;
        let error = got.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Authentication);
        assert!(
            error.message.contains("[redacted]") && !error.message.contains("token-of"),
            "{error}"
        );
    }
    fs::remove_file(&file).unwrap();
    let variable = (
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        file.to_str().unwrap(),
    );
    let error = signed(&container(&upstream, &[variable]), now())
        .await
        .unwrap_err();
    assert!(error.message.contains("cannot be read"), "{error}");
    let line_feed = ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "token-of\na-thief");
    let error = signed(&container(&upstream, &[line_feed]), now())
        .await
        .unwrap_err();
    assert!(
        error.message.contains("no header may have") && !error.message.contains("thief"),
        "{error}"
    );
}

#[test]
fn keys_are_fetched_from_near_agents_or_over_tls_only() {
    let full = |url: &str| found(None, &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", url)]);
    for url in [
        "http://127.0.0.1:1/x",
        "http://127.9.9.9/x",
        "http://[::1]/x",
        "http://localhost/x",
        "http://169.254.170.2/x",
        "http://169.254.170.23/v1/credentials",
        "http://[fd00:ec2::23]/v1/credentials",
        "https://agent.example.com/x",
    ] {
        assert!(full(url).is_ok(), "{url}");
    }
    for url in [
        "http://example.com/x",
        "http://169.254.169.254/latest/meta-data",
        "http://10.0.0.1/x",
        "http://127.0.0.1.example.com/x",
        "http://127.0.0.1@example.com/x",
        "http://user@127.0.0.1/x",
        "ftp://127.0.0.1/x",
        "/x",
        "",
        "no url",
    ] {
        assert!(full(url).is_err(), "{url}");
    }
    let relative = |path: &str| found(None, &[("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", path)]);
    let shown = format!("{:?}", relative("/v2/credentials/1").unwrap());
    assert!(
        shown.contains("http://169.254.170.2/v2/credentials/1"),
        "{shown}"
    );
    for path in ["v2", "@example.com/", ".example.com/", ":80@example.com/"] {
        wrong(relative(path), &["begin with `/`"]);
    }
}

#[test]
fn nothing_shows_the_keys() {
    let account = AwsCredentials::fixed(
        "AKSECRETID".into(),
        "secret-key".into(),
        Some("secret-token".into()),
    );
    let settings = Settings {
        region: Some("us-east-1".into()),
        aws: Some(account.clone()),
        ..Settings::default()
    };
    let wire = wire(&account);
    let request = wire.chat_request(&support::request(), now()).unwrap();
    let shown = format!("{account:?} {settings:?} {wire:?} {request:?}");
    for secret in ["AKSECRETID", "secret-key", "secret-token"] {
        assert!(!shown.contains(secret), "{shown}");
    }
    assert_eq!(wire.secrets().len(), 3);
}
