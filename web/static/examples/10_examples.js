// Example pictures: props.items = [{ url, prompt, image }], value = the chosen one. It is put into the form without the
// server, whose responses to two clicks can arrive in another order.
const box = element.querySelector(".examples"), items = props.items || [];

box.hidden = !items.length;
box.querySelector(".items").replaceChildren(...items.map((item, index) => {
  const button = document.createElement("button"), image = document.createElement("img");
  button.type = "button";
  button.title = item.prompt;
  button.dataset.testid = `example-${index}`;
  image.src = new URL(item.url, document.baseURI).pathname;
  image.alt = `Example: ${item.prompt}`;
  button.append(image);
  button.addEventListener("click", () => {
    const { path, name, url } = item.image, meta = { _type: "gradio.FileData" };
    const image = { path, url: new URL(url, document.baseURI).href, orig_name: name, meta };
    props.value = { image, prompt: item.prompt };
    trigger("select");
  });
  return button;
}));
