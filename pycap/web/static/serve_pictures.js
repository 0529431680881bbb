/** Pictures in the browser: a small one to show in a list, a smaller one to send. */

const TILE = 320; // pixels of a list's picture
const COPY = 2048; // longest side of a copy that is sent in place of a picture that is too large

/**
 * A small JPEG of a picture, upright, and how large the picture is; null where this browser cannot show its format.
 * @param {Blob} file
 * @returns {Promise<{small: Blob, width: number, height: number} | null>}
 */
export async function look(file) {
  const bitmap = await decoded(file);
  if (bitmap === null) return null;
  const { width, height } = bitmap;
  return { small: await scaled(bitmap, TILE, 0.85), width, height };
}

/**
 * A JPEG of at most COPY pixels a side, with the picture's name; null as above.
 * @param {File} file
 */
export async function copyToSend(file) {
  const bitmap = await decoded(file);
  return bitmap && new File([await scaled(bitmap, COPY, 0.92)], file.name.replace(/(\.\w+)?$/, ".jpg"), { type: "image/jpeg" });
}

/** @param {Blob} file */
async function decoded(file) {
  try {
    return await createImageBitmap(file);
  } catch {
    return null; // no picture, or a format that the service reads and this browser does not
  }
}

/**
 * @param {ImageBitmap} bitmap closed here
 * @param {number} side
 * @param {number} quality
 * @returns {Promise<Blob>}
 */
function scaled(bitmap, side, quality) {
  const scale = Math.min(1, side / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff"; // under what is transparent, as the service has it
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return new Promise((resolve, reject) => {
    const done = (blob) => (blob ? resolve(blob) : reject(new Error("this browser made no JPEG of it")));
    canvas.toBlob(done, "image/jpeg", quality);
  });
}
