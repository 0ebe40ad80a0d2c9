// Reads objects as a JSON array, and writes what is wrong with each: by the compiled schemas of their definitions, which
// let unknown fields pass, and by their types, which do not.
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import ts from "typescript";
import { HTTPRoute } from "@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1/HTTPRoute";
import { ScaledObject } from "@kubernetes-models/keda/keda.sh/v1alpha1/ScaledObject";

const MODELS = {
  HTTPRoute: [HTTPRoute, "@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1/HTTPRoute"],
  ScaledObject: [ScaledObject, "@kubernetes-models/keda/keda.sh/v1alpha1/ScaledObject"],
};
const FOLDER = dirname(fileURLToPath(import.meta.url));

function bySchema(model, object) {
  try {
    new model(object).validate();
    return [];
  } catch (error) {
    return [error.message];
  }
}

/** By the compiler, which refuses a literal with a field that its type has not. */
function byType(module, object) {
  const file = join(FOLDER, "object.mts");
  const text = `import type { I${object.kind} } from "${module}";\nexport const it: I${object.kind} = ${JSON.stringify(object)};\n`;
  const { options } = ts.parseJsonConfigFileContent(
    JSON.parse(readFileSync(join(FOLDER, "tsconfig.json"), "utf8")), ts.sys, FOLDER);
  const host = ts.createCompilerHost(options);
  const [read, exists] = [host.getSourceFile, host.fileExists];
  host.fileExists = (name) => name === file || exists.call(host, name);
  host.getSourceFile = (name, ...rest) =>
    name === file ? ts.createSourceFile(name, text, options.target) : read.call(host, name, ...rest);
  return ts.getPreEmitDiagnostics(ts.createProgram([file], options, host))
    .map(({ messageText }) => ts.flattenDiagnosticMessageText(messageText, "\n"));
}

const objects = JSON.parse(readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify(objects.map((object) => {
  const [model, module] = MODELS[object.kind];
  return [...bySchema(model, object), ...byType(module, object)];
})));
