//! Signature Version 4: <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>.

use std::time::SystemTime;

use aws_credential_types::Credentials as SigningKeys;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4::SigningParams;
use bytes::Bytes;
use http::Request;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use secrecy::{ExposeSecret, SecretString};

use crate::aws::AwsCredentials;
use crate::error::{ErrorKind, ProviderError};
use crate::profile::Settings;

/// The name of the service in signatures, for `bedrock-runtime` as for `bedrock`.
const SERVICE: &str = "bedrock";
const SECURITY_TOKEN: &str = "x-amz-security-token";

/// Signs requests to one region with an account's keys.
#[derive(Debug)]
pub(super) struct Signer {
    credentials: AwsCredentials,
    region: String,
}

impl Signer {
    /// # Errors
    ///
    /// [`Configuration`](ErrorKind::Configuration) where the account or the region is missing.
    pub(super) fn new(settings: &Settings) -> Result<Self, ProviderError> {
        let wrong = |message: &str| ProviderError::new(ErrorKind::Configuration, message);
        let credentials = settings.aws.clone().ok_or_else(|| {
            wrong(
                "there is neither a Bedrock API key (AWS_BEARER_TOKEN_BEDROCK) nor an AWS account",
            )
        })?;
        let plain = |region: &&str| {
            let mut bytes = region.bytes();
            !region.is_empty() && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        let region = settings.region.as_deref().map(str::trim).filter(plain);
        let region = region.ok_or_else(|| {
            wrong("the AWS region is missing or no plain name such as us-east-1: set region or AWS_REGION")
        })?;
        Ok(Self {
            credentials,
            region: region.into(),
        })
    }

    pub(super) fn credentials(&self) -> &AwsCredentials {
        &self.credentials
    }

    /// AWS says that the keys have expired.
    pub(super) fn expired(&self) {
        self.credentials.expired();
    }

    pub(super) fn secrets(&self) -> Vec<SecretString> {
        self.credentials.secrets()
    }

    /// Adds the headers of a signature over the address, the body, and the headers that say what the body is; proxies
    /// may change the others. The path is encoded once more for the signature, as for every service but S3.
    pub(super) fn sign(
        &self,
        request: &mut Request<Bytes>,
        now: SystemTime,
    ) -> Result<(), ProviderError> {
        let failed = |why: String| {
            ProviderError::new(
                ErrorKind::Configuration,
                format!("the request cannot be signed: {why}"),
            )
        };
        let keys = self.credentials.keys();
        let keys = keys.ok_or_else(|| failed("no AWS credentials were fetched yet".into()))?;
        let text = |secret: &SecretString| secret.expose_secret().to_owned();
        let identity = SigningKeys::new(
            text(&keys.id),
            text(&keys.secret),
            keys.token.as_ref().map(text),
            None,
            SERVICE,
        )
        .into();
        let params = SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name(SERVICE)
            .time(now)
            .settings(SigningSettings::default())
            .build()
            .map_err(|error| failed(error.to_string()))?
            .into();
        let content_type = request.headers().get(CONTENT_TYPE);
        let content_type =
            content_type.and_then(|value| Some((CONTENT_TYPE.as_str(), value.to_str().ok()?)));
        let signable = SignableRequest::new(
            request.method().as_str(),
            request.uri().to_string(),
            content_type.into_iter(),
            SignableBody::Bytes(request.body()),
        )
        .map_err(|error| failed(error.to_string()))?;
        let signed = sign(signable, &params).map_err(|error| failed(error.to_string()))?;
        let (instructions, _) = signed.into_parts();
        instructions.apply_to_request_http1x(request);
        for name in [AUTHORIZATION.as_str(), SECURITY_TOKEN] {
            if let Some(value) = request.headers_mut().get_mut(name) {
                value.set_sensitive(true);
            }
        }
        Ok(())
    }
}
