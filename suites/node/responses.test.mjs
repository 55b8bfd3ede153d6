import assert from 'node:assert/strict';
import { test } from 'node:test';
import OpenAI from 'openai';
import { CHAT_MODEL, connect } from './keepwarm.mjs';

const client = connect();
const short = { model: CHAT_MODEL, temperature: 0, max_output_tokens: 12 };
const long = { model: CHAT_MODEL, input: 'Tell me a story.', max_output_tokens: 1500, ignore_eos: true };
const tool = {
  type: 'function', name: 'weather', description: 'The weather of a city', strict: true,
  parameters: {
    type: 'object', additionalProperties: false, required: ['city'],
    properties: { city: { type: 'string', enum: ['Rome', 'Oslo'] } },
  },
};

test('a response is streamed, kept and deleted', async () => {
  let text = '';
  const stream = client.responses.stream({ ...short, input: 'Hello' });
  stream.on('response.output_text.delta', (event) => (text += event.delta));
  const final = await stream.finalResponse();
  assert.ok(text);
  assert.equal(final.output_text, text);
  assert.equal((await client.responses.retrieve(final.id)).output[0].content[0].text, text);
  await client.responses.delete(final.id);
  await assert.rejects(client.responses.retrieve(final.id), OpenAI.NotFoundError);
});

test('a conversation goes on, and its items are listed', async () => {
  const first = await client.responses.create({ ...short, input: 'Who are you?' });
  const second = await client.responses.create({ ...short, input: 'And now?', previous_response_id: first.id });
  assert.equal(second.previous_response_id, first.id);
  assert.ok(second.usage.input_tokens > first.usage.input_tokens);
  const items = [];
  for await (const item of client.responses.inputItems.list(second.id)) items.push(item);
  assert.deepEqual(items.map((item) => item.content[0].text), ['And now?']);
});

test('the model calls a tool, and answers with what that gave', async () => {
  const body = { model: CHAT_MODEL, temperature: 0, input: 'What is the weather in Rome?', tools: [tool] };
  const called = await client.responses.create({ ...body, tool_choice: 'required' });
  const [call] = called.output;
  assert.equal(call.name, 'weather');
  assert.ok(['Rome', 'Oslo'].includes(JSON.parse(call.arguments).city));
  const output = { type: 'function_call_output', call_id: call.call_id, output: 'sunny' };
  const answer = await client.responses.create({ ...short, input: [output], previous_response_id: called.id });
  assert.equal(answer.output[0].type, 'message');
});

test('an answer in the background is followed, taken up again and cancelled', async () => {
  const response = await client.responses.create({ ...long, background: true });
  const seen = [];
  for await (const event of await client.responses.retrieve(response.id, { stream: true })) {
    seen.push(event);
    if (seen.length === 12) break;
  }
  assert.deepEqual(seen.map((event) => event.sequence_number), [...seen.keys()]);
  const cancelled = await client.responses.cancel(response.id);
  assert.ok(['cancelled', 'incomplete'].includes(cancelled.status)); // it may have reached its end meanwhile
  const rest = [];
  const behind = { stream: true, starting_after: seen.at(-1).sequence_number };
  for await (const event of await client.responses.retrieve(response.id, behind)) rest.push(event);
  assert.equal(rest[0].sequence_number, seen.length);
  const text = [...seen, ...rest].filter((event) => event.type === 'response.output_text.delta').map((event) => event.delta);
  assert.equal(text.join(''), cancelled.output[0].content[0].text);
});
