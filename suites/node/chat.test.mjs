import assert from 'node:assert/strict';
import { test } from 'node:test';
import { zodResponseFormat } from 'openai/helpers/zod';
import { z } from 'zod';
import { CHAT_MODEL, HELLO, connect } from './keepwarm.mjs';

const client = connect();
const model = CHAT_MODEL;
const WEATHER = {
  type: 'function',
  function: {
    name: 'weather',
    description: 'The weather in a city',
    parameters: {
      type: 'object',
      properties: { city: { type: 'string', enum: ['Paris', 'Rome'] } },
      required: ['city'],
      additionalProperties: false,
    },
  },
};
const MUST_CALL = { type: 'function', function: { name: 'weather' } };

test('a whole answer has a message, a reason to end and its usage', async () => {
  const answer = await client.chat.completions.create({ model, messages: HELLO, max_tokens: 16, seed: 1 });
  assert.equal(answer.object, 'chat.completion');
  assert.match(answer.id, /^chatcmpl-/);
  assert.equal(answer.choices[0].message.role, 'assistant');
  assert.ok(answer.choices[0].message.content.length > 0);
  assert.ok(['stop', 'length'].includes(answer.choices[0].finish_reason));
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
  assert.ok(answer.usage.completion_tokens <= 16);
});

test('a stream has the text of the whole answer, and its usage when asked', async () => {
  const body = { model, messages: HELLO, max_tokens: 24, temperature: 0 };
  const whole = await client.chat.completions.create(body);
  const chunks = [];
  const stream = await client.chat.completions.create({
    ...body, stream: true, stream_options: { include_usage: true },
  });
  for await (const chunk of stream) chunks.push(chunk);
  assert.equal(chunks.map((chunk) => chunk.choices[0]?.delta.content ?? '').join(''), whole.choices[0].message.content);
  assert.equal(chunks[0].choices[0].delta.role, 'assistant');
  assert.equal(chunks.at(-2).choices[0].finish_reason, whole.choices[0].finish_reason);
  assert.equal(chunks.at(-1).usage.completion_tokens, whole.usage.completion_tokens);
  assert.deepEqual(chunks.at(-1).choices, []);
  assert.equal(new Set(chunks.map((chunk) => chunk.id)).size, 1);
});

test('the stream helper accumulates what it hears', async () => {
  const runner = client.chat.completions.stream({ model, messages: HELLO, max_tokens: 16, temperature: 0 });
  let text = '';
  let finished = null;
  runner.on('content.delta', ({ delta }) => (text += delta));
  runner.on('content.done', ({ content }) => (finished = content));
  const answer = await runner.finalChatCompletion();
  assert.equal(text, answer.choices[0].message.content);
  assert.equal(finished, text);
  assert.equal(await runner.finalContent(), text);
});

test('a stream can be split in two, and sent on as lines', async () => {
  const ask = () => client.chat.completions.create({ model, messages: HELLO, max_tokens: 8, stream: true });
  const text = async (chunks) => {
    let all = '';
    for await (const chunk of chunks) all += chunk.choices[0].delta.content ?? '';
    return all;
  };
  const [left, right] = (await ask()).tee();
  const texts = await Promise.all([text(left), text(right)]);
  assert.equal(texts[0], texts[1]);
  const lines = await new Response((await ask()).toReadableStream()).text();
  for (const line of lines.trim().split('\n')) assert.equal(JSON.parse(line).object, 'chat.completion.chunk');
});

test('several choices have indices and texts of their own', async () => {
  const answer = await client.chat.completions.create({
    model, messages: HELLO, max_tokens: 8, n: 3, temperature: 1.5, seed: 4,
  });
  assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1, 2]);
  const indices = new Set();
  const stream = await client.chat.completions.create({ model, messages: HELLO, max_tokens: 4, n: 2, stream: true });
  for await (const chunk of stream) for (const choice of chunk.choices) indices.add(choice.index);
  assert.deepEqual([...indices].sort(), [0, 1]);
});

test('log probabilities come for every token, with its rivals', async () => {
  const answer = await client.chat.completions.create({
    model, messages: HELLO, max_tokens: 6, logprobs: true, top_logprobs: 3,
  });
  const tokens = answer.choices[0].logprobs.content;
  assert.equal(tokens.length, answer.usage.completion_tokens - (answer.choices[0].finish_reason === 'stop' ? 1 : 0));
  for (const token of tokens) {
    assert.ok(token.logprob <= 0);
    assert.equal(token.top_logprobs.length, 3);
  }
  const bytes = Buffer.from(tokens.flatMap((token) => token.bytes));
  assert.equal(bytes.toString(), answer.choices[0].message.content);
});

test('an answer stops before a stop string', async () => {
  const body = { model, messages: HELLO, max_tokens: 32, temperature: 0 };
  const content = (await client.chat.completions.create(body)).choices[0].message.content;
  const stop = content.slice(4, 6);
  const answer = await client.chat.completions.create({ ...body, stop });
  assert.equal(answer.choices[0].message.content, content.slice(0, content.indexOf(stop)));
  assert.equal(answer.choices[0].finish_reason, 'stop');
});

test('an answer follows a JSON schema', async () => {
  const answer = await client.chat.completions.create({
    model, messages: HELLO, max_tokens: 200,
    response_format: {
      type: 'json_schema',
      json_schema: {
        name: 'mood', strict: true,
        schema: {
          type: 'object', properties: { mood: { enum: ['good', 'bad'] }, level: { type: 'integer', minimum: 1, maximum: 5 } },
          required: ['mood', 'level'], additionalProperties: false,
        },
      },
    },
  });
  const value = JSON.parse(answer.choices[0].message.content);
  assert.ok(['good', 'bad'].includes(value.mood) && value.level >= 1 && value.level <= 5);
});

test('parse turns an answer into the type that was asked for', async () => {
  const Mood = z.object({ mood: z.enum(['good', 'bad']), is_sure: z.boolean() });
  const answer = await client.chat.completions.parse({
    model, messages: HELLO, max_tokens: 400, seed: 1, response_format: zodResponseFormat(Mood, 'mood'),
  });
  assert.ok(Mood.safeParse(answer.choices[0].message.parsed).success);
});

test('json_object makes JSON', async () => {
  const answer = await client.chat.completions.create({
    model, messages: HELLO, max_tokens: 400, temperature: 0, response_format: { type: 'json_object' },
  });
  if (answer.choices[0].finish_reason === 'stop') JSON.parse(answer.choices[0].message.content);
  else assert.match(answer.choices[0].message.content, /^\s*\{/);
});

test('a tool that must be called is called with arguments that fit', async () => {
  const body = { model, messages: HELLO, max_tokens: 100, tools: [WEATHER], tool_choice: MUST_CALL };
  const answer = await client.chat.completions.create(body);
  const [call] = answer.choices[0].message.tool_calls;
  assert.equal(call.function.name, 'weather');
  assert.ok(['Paris', 'Rome'].includes(JSON.parse(call.function.arguments).city));
  const streamed = await client.chat.completions.stream({ ...body, stream: true }).finalChatCompletion();
  const [same] = streamed.choices[0].message.tool_calls;
  assert.equal(same.function.name, 'weather');
  assert.ok(['Paris', 'Rome'].includes(JSON.parse(same.function.arguments).city));
});

test('runTools calls the function with what the model chose', async () => {
  const cities = [];
  const runner = client.chat.completions.runTools({
    model, messages: HELLO, max_tokens: 100, tool_choice: MUST_CALL,
    tools: [{
      type: 'function',
      function: {
        ...WEATHER.function, parse: JSON.parse,
        function: ({ city }) => (cities.push(city), `It rains in ${city}.`),
      },
    }],
  });
  assert.match(await runner.finalFunctionToolCallResult(), /^It rains in (Paris|Rome)\.$/);
  assert.equal(cities.length, 1);
});

test('the result of a tool is understood in the next turn', async () => {
  const answer = await client.chat.completions.create({
    model, max_tokens: 16, tools: [WEATHER],
    messages: [
      ...HELLO,
      { role: 'assistant', content: null, tool_calls: [{ id: 'call00001', type: 'function', function: { name: 'weather', arguments: '{"city":"Rome"}' } }] },
      { role: 'tool', tool_call_id: 'call00001', content: 'It rains.' },
    ],
  });
  assert.equal(answer.choices[0].message.role, 'assistant');
});

test('a conversation may have all roles and parts of text', async () => {
  const answer = await client.chat.completions.create({
    model, max_completion_tokens: 8, user: 'someone', store: false, metadata: { a: 'b' },
    messages: [
      { role: 'developer', content: 'Be kind.' },
      { role: 'user', name: 'ann', content: [{ type: 'text', text: 'Hel' }, { type: 'text', text: 'lo' }] },
    ],
  });
  assert.ok(answer.usage.completion_tokens <= 8);
});
