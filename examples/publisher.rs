//! Publishes delivery events straight to the broker, with lapin.
//!
//!     CATCHALL_AMQP_URL=amqp://... cargo run --example publisher -- report-2026-11-25
//!
//! The argument is the id of the message. If the program fails, run it again with the same id: the message
//! counts once, however often it is published.

use std::error::Error;
use std::process::ExitCode;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Confirmation, Connection, ConnectionProperties};

/// Many events in one message: each costs the broker hardly anything. The second event has an id of its own,
/// so it counts once even if another message brings it again.
const EVENTS: &str = r#"[
    {"domain": "example.com", "event": "delivered", "count": 3},
    {"domain": "example.org", "event": "bounced", "id": "message-4713"}
]"#;

/// AMQP's number for a message that must survive a restart of the broker.
const PERSISTENT: u8 = 2;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Some(message_id) = std::env::args().nth(1) else {
        eprintln!("usage: publisher MESSAGE_ID");
        return ExitCode::from(2);
    };
    match publish(&message_id).await {
        Ok(()) => {
            println!("the broker has it");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("not known to be at the broker, publish it again under the same id: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn publish(message_id: &str) -> Result<(), Box<dyn Error>> {
    let url = std::env::var("CATCHALL_AMQP_URL")?;
    let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    // Without this the broker confirms nothing.
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_delivery_mode(PERSISTENT)
        .with_message_id(message_id.into());
    // Mandatory: the broker returns a message that no queue takes. Otherwise it would drop it and confirm
    // that.
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    // The first await sends the message, the second waits for the confirm.
    let confirmation = channel
        .basic_publish("catchall.events".into(), "example.com".into(), options, EVENTS.as_bytes(), properties)
        .await?
        .await?;
    match confirmation {
        Confirmation::Ack(None) => {}
        Confirmation::Ack(Some(_)) => return Err("no queue takes it".into()),
        Confirmation::Nack(_) => return Err("the broker refuses it, its queue is full".into()),
        Confirmation::NotRequested => return Err("the channel has no confirms".into()),
    }
    connection.close(200, "done".into()).await?;
    Ok(())
}
