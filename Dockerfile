# The page and the API of docs/serving.md, as a user without rights. The run's folder is mounted at /model.
FROM python:3.12-slim AS build
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH
# PyTorch for the processor alone: that with CUDA is twenty times as large.
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu torch torchvision
COPY . /src
RUN pip install --no-cache-dir '/src[serve,explain,timm]'

FROM python:3.12-slim
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH
RUN useradd --no-create-home --shell /usr/sbin/nologin server
USER server
WORKDIR /tmp
EXPOSE 8000
# HISTO_PL_TOKEN is needed, as others can reach the address.
ENTRYPOINT ["python", "-m", "histo_pl", "serve", "/model", "--host", "0.0.0.0"]
