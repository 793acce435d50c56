// A language model of the Qwen2 architecture in plain JavaScript: from a safetensors file to next-token logits.
// One token at a time, with a KV cache, in float32. Nothing here is tuned: a megaparameter takes a millisecond.

// Read a model's folder: config.json has its sizes, tokenizer.json its characters, model.safetensors its weights.
export async function load(folder) {
  const get = async (name) => {
    const answer = await fetch(`${folder}/${name}`);
    if (!answer.ok) throw new Error(`${folder}/${name}: ${answer.status} ${answer.statusText}`);
    return answer;
  };
  const [config, tokenizer, file] = await Promise.all([
    get("config.json").then((answer) => answer.json()),
    get("tokenizer.json").then((answer) => answer.json()),
    get("model.safetensors").then((answer) => answer.arrayBuffer()),
  ]);
  return new Model(config, new Tokenizer(tokenizer.model.vocab), safetensors(file));
}

// A safetensors file is a length (8 bytes), that many bytes of JSON naming each tensor, and then the numbers.
function safetensors(file) {
  const length = Number(new DataView(file).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(file, 8, length)));
  delete header.__metadata__;
  const tensors = {};
  for (const [name, { dtype, data_offsets: [begin, end] }] of Object.entries(header)) {
    if (dtype !== "F32") throw new Error(`${name} is ${dtype}: this page reads float32 only`);
    tensors[name] = new Float32Array(file.slice(8 + length + begin, 8 + length + end));
  }
  return tensors;
}

// One token a character; the vocabulary writes a space as Ġ, as byte-level tokenizers do.
class Tokenizer {
  constructor(vocabulary) {
    this.ids = new Map();
    this.characters = [];
    for (const [token, id] of Object.entries(vocabulary)) {
      this.ids.set(token === "Ġ" ? " " : token, id);
      this.characters[id] = token === "Ġ" ? " " : token;
    }
  }
  unknown(text) { return [...new Set(text)].filter((character) => !this.ids.has(character)); }
  encode(text) { return [...text].map((character) => this.ids.get(character)); }
}

export class Model {
  constructor(config, tokenizer, weights) {
    this.config = config;
    this.tokenizer = tokenizer;
    this.weights = weights;
  }

  // What has been read so far: of each layer the keys and values of all tokens. Nothing, to begin with.
  newCache() { return Array.from({ length: this.config.num_hidden_layers }, () => ({ keys: [], values: [] })); }

  // Read one token (an id) after those in the cache, which grows by it; return the logits of the next one.
  step(token, cache) {
    const { num_hidden_layers: layers, rms_norm_eps: eps, hidden_size: width } = this.config;
    const embeddings = this.weights["model.embed_tokens.weight"];
    let x = embeddings.slice(token * width, (token + 1) * width);
    for (let k = 0; k < layers; k++) {
      const layer = (name) => this.weights[`model.layers.${k}.${name}`];
      // Each half of a layer adds to x what it finds in a normalised copy of it.
      x = add(x, this.attention(normalise(x, layer("input_layernorm.weight"), eps), layer, cache[k]));
      x = add(x, this.mlp(normalise(x, layer("post_attention_layernorm.weight"), eps), layer));
    }
    // The output matrix is the embedding matrix: a token is likely where x points towards its embedding.
    return multiply(embeddings, normalise(x, this.weights["model.norm.weight"], eps));
  }

  // Look back: each head compares this token's query with all keys so far, and takes the mean of their values.
  attention(x, layer, { keys, values }) {
    const { num_attention_heads: heads, num_key_value_heads: shared, hidden_size: width } = this.config;
    const size = width / heads;
    const project = (name) => add(multiply(layer(`self_attn.${name}.weight`), x), layer(`self_attn.${name}.bias`));
    const position = keys.length;
    const query = this.rotate(project("q_proj"), position);
    keys.push(this.rotate(project("k_proj"), position));
    values.push(project("v_proj"));
    const found = new Float32Array(width);
    for (let head = 0; head < heads; head++) {
      const from = head * size, kv = Math.floor(head * shared / heads) * size; // heads may share keys and values
      const scores = keys.map((key) => {
        let score = 0;
        for (let i = 0; i < size; i++) score += query[from + i] * key[kv + i];
        return score / Math.sqrt(size);
      });
      softmax(scores).forEach((share, past) => {
        for (let i = 0; i < size; i++) found[from + i] += share * values[past][kv + i];
      });
    }
    return multiply(layer("self_attn.o_proj.weight"), found);
  }

  // Rotary positions: pairs of numbers turn by an angle that grows with the position, fast ones first. A product of
  // query and key then depends on how far apart the two tokens are, not on where they stand.
  rotate(x, position) {
    const size = this.config.hidden_size / this.config.num_attention_heads, half = size / 2;
    const theta = this.config.rope_parameters.rope_theta;
    for (let from = 0; from < x.length; from += size) {
      for (let i = from; i < from + half; i++) {
        const angle = position * theta ** (-(i - from) / half), a = x[i], b = x[i + half];
        x[i] = a * Math.cos(angle) - b * Math.sin(angle);
        x[i + half] = b * Math.cos(angle) + a * Math.sin(angle);
      }
    }
    return x;
  }

  // Think about it: a wide layer, each number of it opened or closed by a gate (SwiGLU).
  mlp(x, layer) {
    const gate = multiply(layer("mlp.gate_proj.weight"), x), up = multiply(layer("mlp.up_proj.weight"), x);
    return multiply(layer("mlp.down_proj.weight"), up.map((u, i) => u * gate[i] / (1 + Math.exp(-gate[i]))));
  }
}

// Matrix [rows, columns], row after row, times vector [columns]. All the time goes here.
function multiply(matrix, vector) {
  const columns = vector.length, result = new Float32Array(matrix.length / columns);
  for (let row = 0, i = 0; row < result.length; row++) {
    let sum = 0;
    for (let column = 0; column < columns; column++, i++) sum += matrix[i] * vector[column];
    result[row] = sum;
  }
  return result;
}

function add(x, y) { return x.map((number, i) => number + y[i]); }

// RMSNorm: scaled to mean square 1, then each number by its own weight.
function normalise(x, weight, eps) {
  const scale = 1 / Math.sqrt(x.reduce((sum, number) => sum + number * number, 0) / x.length + eps);
  return x.map((number, i) => weight[i] * number * scale);
}

// Probabilities from logits; the largest is taken off first, so that exp does not overflow.
export function softmax(logits) {
  const top = logits.reduce((a, b) => Math.max(a, b));
  const powers = logits.map((logit) => Math.exp(logit - top));
  const total = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / total);
}
