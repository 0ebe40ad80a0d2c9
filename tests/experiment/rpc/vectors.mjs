// An independent implementation of the assignment's hash, which prints the vectors that the tests compare with.
import { createHash } from "node:crypto";

const BUCKETS = 1_000_000n;

function words(salt, unitId) {
  const digest = createHash("sha256").update(Buffer.from(`nwx1\u0000${salt}\u0000${unitId}`, "utf8")).digest();
  return [digest.readUInt32BE(0), digest.readUInt32BE(4)];
}

function bucket(word) {
  return Number((BigInt(word) * BUCKETS) >> 32n);
}

const salts = ["", "s", "01JD3N8Z7Q", "sälz/ü", "🧂", "a".repeat(64)];
const units = [
  "",
  "u",
  "user-1",
  "user-2",
  "Jörg",
  "Jo\u0308rg", // the same letters to the eye, other code points: not normalised
  "김서연",
  "Зоя",
  "𝒳-astral",
  "👩‍🔧",
  "\uFEFFbom",
  "\u202Ebidi",
  "line\nbreak",
  " space ",
  "0",
  "x".repeat(256),
];
for (let number = 0; number < 100; number += 1) units.push(`visitor-${number}`);

const vectors = [];
for (const salt of salts)
  for (const unitId of units) {
    const [first, second] = words(salt, unitId);
    vectors.push({ salt, unit_id: unitId, words: [first, second], buckets: [bucket(first), bucket(second)] });
  }
const lines = vectors.map((vector) => JSON.stringify(vector)).join(",\n");
process.stdout.write(`{"format":"nwx1","vectors":[\n${lines}\n]}\n`);
