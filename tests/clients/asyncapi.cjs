// Prints what is wrong with an AsyncAPI document, and with its examples, as JSON.

const { readFileSync } = require("node:fs");
const { Parser } = require("@asyncapi/parser");
const { Ajv } = require("ajv");

async function main() {
  const { document, diagnostics } = await new Parser().parse(readFileSync(process.argv[2], "utf8"));
  // That there is a later version than 3.0 is no fault.
  const faults = diagnostics.filter(({ code }) => code !== "asyncapi-latest-version");
  const found = faults.map(({ code, message, path }) => `${code}: ${message} (${path.join("/")})`);
  // The formats are checked by what reads the messages.
  const ajv = new Ajv({ strict: false, validateFormats: false });
  for (const message of document?.components().messages() ?? []) {
    for (const example of message.examples()) {
      const parts = [
        [message.payload(), example.payload()],
        [message.headers(), example.headers()],
      ];
      for (const [schema, value] of parts) {
        if (!ajv.validate(schema.json(), value)) {
          found.push(`${message.id()}, ${example.name()}: ${ajv.errorsText()}`);
        }
      }
    }
  }
  console.log(JSON.stringify(found));
}

main();
