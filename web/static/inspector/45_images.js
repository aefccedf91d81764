// For a question about several images: the image of the maps. Each image has a small picture, and the share of the chosen
// tokens' attention on it.
function buildImages() {
  const box = $(".pictures");
  box.hidden = run.images.length < 2;
  box.replaceChildren(...(box.hidden ? [] : run.images.map((image, k) => {
    const high = 40, wide = Math.round(Math.max(16, Math.min(96, (high * image.width) / image.height)));
    const canvas = node("canvas", { width: 2 * wide, height: 2 * high, style: `width:${wide}px;height:${high}px` });
    canvas.getContext("2d").drawImage(picture.images[run.variants[0].photo + k], 0, 0, 2 * wide, 2 * high);
    const title = `The maps of image ${k}, ${image.width} × ${image.height} pixels`;
    return node("button", { type: "button", "data-image": k, "data-testid": `image-${k}`, title, onclick: () => chooseImage(k) },
      canvas, node("span", {}, `image ${k}`), node("b", {}));
  })));
}

function chooseImage(k) {
  if (k === view.image) return;
  Object.assign(view, { image: k, box: null, cursor: null });
  if (view.quantity === "box") view.quantity = "image";
  forgetSizes(); // it may have another shape
  repaint();
}

// The attention on one of the images: the sum of its patches, if the map is a mean.
function shareOfImage(variant, map, k) {
  const image = variant.images[k];
  if (!image || !map || view.combine !== "mean") return null;
  let sum = 0;
  for (let v = image.start; v < image.start + image.rows * image.columns; v++) sum += map[v] || 0;
  return sum;
}

function markImages() {
  for (const button of element.querySelectorAll(".pictures button")) {
    const k = +button.dataset.image, shares = run.variants.map((v) => shareOfImage(v, shown.maps[v.name], k)).filter((x) => x != null);
    mark(button, "aria-pressed", k === view.image);
    write(button.querySelector("b"), shares.map(percent).join(" → "));
  }
}
